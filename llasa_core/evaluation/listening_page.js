document.addEventListener("play", (event) => document.querySelectorAll("audio").forEach(
  (player) => player === event.target || player.pause()), true);
