"""Files that are written whole or not at all, and paths that mean the same from every working directory."""

import errno
import fcntl
import gzip
import hashlib
import io
import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from workbench import WorkbenchError

HALF = re.compile(r"\\u[dD][89a-fA-F]")  # how JSON escapes half of an emoji, with its other half or alone
WIDTHLESS = re.compile(  # what nobody sees: Unicode's Default_Ignorable_Code_Point
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
LONGEST_NAME, LONGEST_PATH = 255, 4000  # bytes, of one part and of the whole
HUB_SECONDS = 5.0  # to wait for its first answer
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG}


def repository_root() -> Path:
    """Folder that relative paths start from; WorkbenchError where the package was installed without its repository."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").is_file():
        raise WorkbenchError(
            f"{root} is not the repository: install the checkout with `pip install -e .` or give full paths."
        )
    return root


def resolve(path: str | Path) -> Path:
    """Absolute path; a relative one starts at the repository root, never at the working directory."""
    path = user_path(path)
    whole = path if path.is_absolute() else repository_root() / path
    return Path(os.path.normpath(whole))  # ".." would hide which stage another one reads


def file_and_function(text: str) -> tuple[str, str]:
    """The two parts of "my_file.py:score", the second "" for any other text."""
    file, _, name = text.strip().rpartition(":")
    return (file, name) if file.endswith(".py") else (text, "")


def user_path(path: str | Path) -> Path:
    """The path with ~ replaced; WorkbenchError where no file could have that name, or there is no such user."""
    text, path = str(path), Path(path)
    if "\0" in text or len(text) > LONGEST_PATH or any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        raise WorkbenchError(
            f"The path {text[:80]!r} has a name of over {LONGEST_NAME} bytes, over {LONGEST_PATH} in all or a null "
            "character: give another path."
        )
    try:
        return path.expanduser()
    except RuntimeError:
        raise WorkbenchError(f"The path {text!r} starts with a user who is not there: give another path.") from None


def shown(path: str | Path) -> str:
    """The path as a user would type it: relative to the repository root where it lies inside."""
    path, root = resolve(path), Path(__file__).resolve().parents[2]
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def listed(folder: Path) -> str:
    """Some of what a folder holds, but for hidden files."""
    with explain_write_errors(folder):
        names = [f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir()]
    found = sorted(name for name in names if not name.startswith("."))
    return ", ".join(found[:6] + ["..."] * (len(found) > 6))


def file_system(folder: str | Path) -> str:
    """Type of the file system that holds a folder, such as "ext4" or "nfs4"; "" where the system does not say."""
    mounts = Path("/proc/self/mountinfo")
    if not mounts.exists():
        return ""
    folder, found = resolve(folder).resolve(), {}
    for line in mounts.read_text(encoding="utf-8").splitlines():
        place, kind = line.split(" - ")
        found[Path(place.split()[4].encode().decode("unicode_escape"))] = kind.split()[0]
    return next((found[parent] for parent in (folder, *folder.parents) if parent in found), "")


def write_text(path: str | Path, text: str) -> None:
    """Replace a file whole or not at all, in UTF-8, making its folder; WorkbenchError on a full disk or where refused.

    Half a character (of a file's odd name, say) is escaped as JSON does.
    """
    with replace_file(path) as partial:
        partial.write_bytes(text.encode(errors="backslashreplace"))


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Temporary file path that replaces `path` on success and is removed on error."""
    path = resolve(path)
    with explain_write_errors(path):
        partial = _partial(path)
        try:
            yield partial
            flush_to_disk(partial)
            os.replace(partial, path)
            flush_to_disk(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: str | Path) -> Iterator[Path]:
    """Temporary folder that replaces `path` on success and is removed on error."""
    path = resolve(path)
    with explain_write_errors(path):
        partial = _partial(path)
        retired = partial.with_suffix(".retired.partial")
        try:
            partial.mkdir()
            yield partial
            for file in partial.rglob("*"):
                flush_to_disk(file)
            # A folder with contents cannot be replaced in one call: the old one steps aside for the new one.
            if path.exists():
                os.rename(path, retired)
            os.rename(partial, path)
            flush_to_disk(path.parent)
        except BaseException:
            if retired.exists() and not path.exists():
                os.rename(retired, path)
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(retired, ignore_errors=True)


def append_lines(path: str | Path, lines: Iterable[str]) -> None:
    """Append lines in one write: an error leaves the file as it was, a killed process at most half a last line."""
    path, data = resolve(path), "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace")
    with explain_write_errors(path), open(path, "ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            written = file.write(data)
            if written < len(data):  # a full disk may take a part without complaint: the rest then names the reason
                file.write(data[written:])
        except OSError:
            file.truncate(size)
            raise


def write_json(path: str | Path, value: dict) -> None:
    """Replace a JSON file whole or not at all, indented for reading."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> dict:
    """The object that a JSON file holds; WorkbenchError where it is missing, damaged or holds something else."""
    path = resolve(path)
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkbenchError(f"{shown(path)} is damaged ({error}): repair it, or delete this folder.") from error
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise WorkbenchError(f"{shown(path)} holds a {kind} and no object {{...}}: repair it, or delete this folder.")
    return value


def json_line(value: Any) -> str:
    """Any value, `plain`, on one line that every JSON reader takes; numbers keep every digit."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False)


def plain(value: Any) -> Any:
    """What JSON holds: numpy and torch values unpacked, None for NaN and infinity, a size for bytes, else text."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    text = f"{len(value)} bytes" if isinstance(value, bytes) else str(value)  # of a date, a Decimal, a UUID, a picture
    return None if text in ("NaT", "<NA>", "NaN") else text


def parse_json(text: str) -> Any:
    """What JSON says, in whole characters; ValueError where it is none (or nested too deep, or of endless digits)."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return json.loads(whole_characters(json.dumps(value, ensure_ascii=False))) if HALF.search(text) else value


def whole_characters(text: str) -> str:
    """The text with U+FFFD for each half of a character (a lone surrogate), which no file and no table can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_json_lines(path: str | Path) -> list[dict]:
    """Rows of a JSON-lines file, none where it does not exist; a half-written last line is left out."""
    path = resolve(path)
    if not path.exists():
        return []
    whole, _, _half = path.read_bytes().rpartition(b"\n")
    try:
        return [json.loads(line) for line in whole.split(b"\n") if line]
    except ValueError as error:
        raise WorkbenchError(f"{shown(path)} holds a line that is not JSON ({error}): repair or delete it.") from error


@contextmanager
def explain_read_errors(path: Path) -> Iterator[None]:
    """Turn what reading a broken file raises into one sentence."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise WorkbenchError(
            f"{shown(path)} is a truncated or damaged gzip file ({error}): fetch or compress it again."
        ) from error
    except OSError as error:
        raise WorkbenchError(f"{shown(path)} cannot be read ({error}): check the file and its permissions.") from error


def text_of(path: Path) -> str:
    """What a file says in UTF-8, perhaps compressed, without its byte order mark."""
    data = path.read_bytes()
    data = gzip.decompress(data) if path.name.lower().endswith(".gz") else data
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        raise WorkbenchError(
            f"{shown(path)}, line {line} is not UTF-8 text (byte {error.start}, {error.reason}): save it as UTF-8."
        ) from error


def json_rows(path: Path) -> list[dict]:
    """The objects that a file of data holds: a list in a .json file, else one per line, blank lines skipped."""
    if path.suffix.lower() == ".json":
        return _json_list(path)
    rows = []
    for number, line in enumerate(io.StringIO(text_of(path), newline=None), start=1):
        if line.isspace():
            continue
        try:
            rows.append(parse_json(line))
        except ValueError as error:
            at = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            raise WorkbenchError(
                f"{shown(path)}, line {number} is not valid JSON ({at}): give one JSON object per line."
            ) from error
        if not isinstance(rows[-1], dict):
            raise _no_object(rows[-1], f"{shown(path)}, line {number}")
    return rows


def _no_object(row: Any, where: str) -> WorkbenchError:
    """The sentence about a row that is none."""
    return WorkbenchError(f"{where} is {type(row).__name__}, expected an object of columns: write {{...}} per row.")


def _json_list(path: Path) -> list[dict]:
    """A list of JSON objects."""
    text = text_of(path)
    try:
        rows = parse_json(text)
    except ValueError as error:
        where = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise WorkbenchError(
            f"{shown(path)}{where} is not valid JSON ({error}): "
            "give one list of objects, or name it .jsonl if it has one object per line."
        ) from error
    if not isinstance(rows, list):
        raise WorkbenchError(f"{shown(path)} holds {type(rows).__name__}, expected a list of objects: write [{{...}}].")
    odd = next((number for number, row in enumerate(rows) if not isinstance(row, dict)), None)
    if odd is not None:
        raise _no_object(rows[odd], f"{shown(path)}, row {odd}")
    return rows


def sha256(path: str | Path) -> str:
    """Hash of a file's bytes, or of a folder's sorted relative names and contents; WorkbenchError if missing."""
    path = resolve(path)
    if path.is_file():
        try:
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise WorkbenchError(
                f"{shown(path)} cannot be read ({error.strerror}): check the file and its permissions."
            ) from error
    if not path.is_dir():
        raise WorkbenchError(f"{shown(path)} does not exist: run the notebook that makes it or give another path.")
    refuse_everything(path)
    digest = hashlib.sha256()
    for file in sorted(
        (file for file in path.rglob("*") if file.is_file()), key=lambda file: file.relative_to(path).as_posix()
    ):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\n".encode())
    return digest.hexdigest()


def refuse_everything(path: Path) -> None:
    """WorkbenchError for a folder that holds the workbench itself, such as /: nobody means all of it."""
    if Path(__file__).resolve().is_relative_to(os.path.realpath(path)):
        raise WorkbenchError(f"{path} holds the workbench itself: give a folder that holds nothing but what is meant.")


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Keep other processes out while the block runs; WorkbenchError where one is already inside."""
    path = resolve(path)
    with explain_write_errors(path):
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closing it is what lets the next process in
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkbenchError(
                f"Another process is writing in {shown(path.parent)}: wait until it ends or choose another folder."
            ) from None
        except OSError:  # some network disks have no locks; training there must still be possible
            pass
        yield


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn a full disk and a refused write, also those that libraries report in their own words, into one sentence."""
    try:
        yield
    except WorkbenchError:
        raise
    except Exception as error:
        code = _error_number(error)
        if code in FULL:
            raise WorkbenchError(
                f"{shown(path)} was not written because the disk is full, and what was there before is untouched: "
                "free some space and run the same command again."
            ) from error
        if code in REFUSED:
            raise WorkbenchError(
                f"{shown(path)} cannot be written ({os.strerror(code)}): choose another folder."
            ) from error
        raise


def _error_number(error: BaseException) -> int:
    """Operating system's number behind an exception, 0 where there is none."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    named = re.search(r"os error (\d+)", str(error))  # how safetensors words it
    if named:
        return int(named[1])
    return _error_number(error.__context__) if error.__context__ else 0


def _partial(path: Path) -> Path:
    """Name for the unfinished version beside `path`, after removing what killed processes left there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.iterdir():
        writer = re.fullmatch(rf"\.{re.escape(path.name)}\.(\d+)(\.retired)?\.partial", left.name)
        if writer and not _is_running(int(writer[1])):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def _is_running(process: int) -> bool:
    with suppress(PermissionError):  # it runs, but for another user
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
    return True


def flush_to_disk(path: Path) -> None:
    """Wait until a file or the entries of a folder would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hub_answers(ask: Callable[..., object], name: str) -> bool:
    """Whether the Hugging Face Hub answers `ask(name, timeout=...)` about a repository; "there is no such" is one, too.

    Asked once and briefly: its libraries would first retry for a minute.
    """
    from huggingface_hub.errors import HfHubHTTPError

    try:
        ask(name, timeout=HUB_SECONDS)
    except HfHubHTTPError:
        return True
    except Exception:  # no route, no name, time out, offline mode: whatever the HTTP library calls it
        return False
    return True
