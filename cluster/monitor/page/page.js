// Reads the page again from time to time, without the flicker of loading it. Without
// scripts, the browser loads it. It is read also while it is hidden, as its title is not: that of a
// tab in the background must not say that all is well when it no longer is.
(() => {
  const every = 1000 * document.documentElement.dataset.interval;
  let failed = 0;
  const again = async () => {
    try {
      const answer = await fetch(location.href, {cache: 'no-store', signal: AbortSignal.timeout(15000)});
      if (!answer.ok) throw new Error(answer.status);
      const next = new DOMParser().parseFromString(await answer.text(), 'text/html');
      document.querySelector('main').replaceWith(next.querySelector('main'));
      document.title = next.title;
      failed = 0;
    } catch (e) {
      failed++;
      document.title = '? ' + document.title.replace(/^\? /, '');
    }
    document.getElementById('stale').hidden = failed === 0;
  };
  setInterval(again, every);
  document.addEventListener('visibilitychange', again);
})();
