// <live-speech src>: plays a 16-bit mono WAV while it is still being made. A browser's own player
// reads some 200 kB, six seconds of speech, before it begins.
class LiveSpeech extends HTMLElement {
  async connectedCallback() {
    this.innerHTML = '<button type="button" class="live">Pause</button><span></span>';
    const [button, place] = this.children;
    const response = await fetch(this.getAttribute("src"));
    if (!response.ok) return this.remove();
    const reader = response.body.getReader();
    let bytes = new Uint8Array(0);
    let end = 0; // of what is scheduled, in seconds of the context
    this.seconds = 0; // of speech that is scheduled
    this.played = () => Math.max(0, this.seconds - Math.max(0, end - this.context.currentTime));
    button.onclick = () =>
      this.context?.state === "running" ? this.context.suspend() : this.context?.resume();
    for (;;) {
      const { done, value } = await reader.read();
      if (done || !this.isConnected) break;
      const joined = new Uint8Array(bytes.length + value.length);
      joined.set(bytes);
      joined.set(value, bytes.length);
      bytes = joined;
      if (!this.context) {
        if (bytes.length < 44) continue;
        this.begin(new DataView(bytes.buffer).getUint32(24, true), button, place);
        bytes = bytes.slice(44);
      }
      const count = bytes.length >> 1;
      if (!count) continue;
      const samples = Float32Array.from(
        new Int16Array(bytes.slice(0, 2 * count).buffer), (sample) => sample / 32768);
      bytes = bytes.slice(2 * count);
      const buffer = this.context.createBuffer(1, count, this.context.sampleRate);
      buffer.copyToChannel(samples, 0);
      const source = new AudioBufferSourceNode(this.context, { buffer });
      source.connect(this.context.destination);
      end = Math.max(end, this.context.currentTime + 0.05);
      source.start(end);
      end += buffer.duration;
      this.seconds += buffer.duration;
      source.onended = () => { if (this.whole && this.context.currentTime >= end - 0.1) this.remove(); };
    }
    this.whole = true;
    if (!end) this.remove();
  }
  begin(rate, button, place) {
    this.context = new AudioContext({ sampleRate: rate });
    const told = () => (button.textContent = this.context.state === "running" ? "Pause" : "Play");
    this.context.onstatechange = told;
    told();
    this.timer = setInterval(
      () => (place.textContent = ` ${this.played().toFixed(1)} s heard`), 100);
  }
  disconnectedCallback() {
    clearInterval(this.timer);
    this.context?.close();
  }
}
customElements.define("live-speech", LiveSpeech);

// What changes without a click is read out
addEventListener("load", () => {
  document.documentElement.lang = "en";
  const names = new Set(["status", "compare-status", "heard", "verdicts"]);
  new MutationObserver(() => {
    for (const name of names) {
      const region = document.getElementById(name);
      if (!region) continue;
      region.setAttribute("role", "status");
      names.delete(name);
    }
  }).observe(document.body, { childList: true, subtree: true });
});
