// Which words of two completions, as they are shown, are not in their longest common subsequence of words.

const LARGEST_TABLE = 4e6; // cells, 8 MB and a few hundredths of a second

function wordsOf(shown) {
  return textNodes(shown).flatMap(({ data }) => data.split(/\s+/).filter(Boolean));
}

// {left, right, exact}: a flag per word, true where it differs. Texts too long for the table are compared word by
// word without their order (exact is false): marked is what the other text does not contain at all.
function wordDifferences(left, right) {
  let start = 0, leftEnd = left.length, rightEnd = right.length;
  while (start < leftEnd && start < rightEnd && left[start] === right[start]) start += 1;
  while (leftEnd > start && rightEnd > start && left[leftEnd - 1] === right[rightEnd - 1]) {
    leftEnd -= 1;
    rightEnd -= 1;
  }
  const a = left.slice(start, leftEnd), b = right.slice(start, rightEnd);
  const exact = (a.length + 1) * (b.length + 1) <= LARGEST_TABLE;
  const [inA, inB] = exact ? notInCommon(a, b) : [notIn(a, b), notIn(b, a)];
  const around = (flags, length) =>
    Array.from({ length }, (_, word) => word >= start && word < start + flags.length && flags[word - start]);
  return { left: around(inA, left.length), right: around(inB, right.length), exact };
}

function notIn(words, others) {
  const known = new Set(others);
  return words.map((word) => !known.has(word));
}

// table[i][j] = length of the longest common subsequence of a from i on and b from j on
function notInCommon(a, b) {
  const width = b.length + 1, table = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      const below = table[(i + 1) * width + j], beside = table[i * width + j + 1];
      table[i * width + j] = a[i] === b[j] ? table[(i + 1) * width + j + 1] + 1 : Math.max(below, beside);
    }
  }
  const inA = a.map(() => true), inB = b.map(() => true);
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    if (a[i] === b[j]) inA[i++] = inB[j++] = false;
    else if (table[(i + 1) * width + j] >= table[i * width + j + 1]) i += 1;
    else j += 1;
  }
  return [inA, inB];
}
