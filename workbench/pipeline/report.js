
const plot = document.getElementById("{plot_id}");
const name = () => {
  const title = plot.layout.title?.text ?? "figure";
  const page = new DOMParser().parseFromString(title.replaceAll("<br>", " "), "text/html");
  plot.setAttribute("aria-label", page.body.textContent.trim());
};
plot.setAttribute("role", plot.data.some(trace => trace.type === "table") ? "figure" : "img");
plot.on("plotly_afterplot", name);
name();
