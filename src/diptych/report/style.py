"""The page's style: a well-set paper page, light and dark, from a phone to a desk. Plain CSS, embedded whole."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfaf6; --ink: #22211e; --quiet: #6d6a62; --rule: #dcd8cd; --raised: #f2efe6;
  --train: #2f5d8a; --held-out: #b4532a; --right: #3d7a4b; --wrong: #a83a3a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #171614; --ink: #e8e4da; --quiet: #9d988c; --rule: #38352f; --raised: #211f1c;
    --train: #86b4e0; --held-out: #eb9a6f; --right: #84c292; --wrong: #e58a83;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 17px/1.55 "Iowan Old Style", "Palatino Linotype", Palatino, "URW Palladio L", "Book Antiqua", Georgia, serif; }
main { max-width: 47rem; margin: 0 auto; padding: 3.5rem 1.25rem 5rem; overflow-wrap: anywhere; }
header p { margin: 0; font-variant: small-caps; letter-spacing: .12em; color: var(--quiet); }
h1 { margin: 0; font-size: 2.1rem; line-height: 1.2; font-weight: 500; }
h2 { margin: 3.2rem 0 .8rem; padding-top: .7rem; border-top: 1px solid var(--rule); font-size: 1.3rem; font-weight: 500; }
h3 { margin: 1.4rem 0 .4rem; font-size: 1rem; font-weight: 600; }
h3 small { font-weight: 400; color: var(--quiet); margin-left: .4em; }
small, .quiet { font-size: .85rem; color: var(--quiet); }
figure, ul, ol, dl { margin: 0; padding: 0; }
ul, ol { list-style: none; }
img { display: block; max-width: 100%; border-radius: 3px; }
table, small, svg { font-variant-numeric: tabular-nums lining-nums; }
.words { margin: 0; font-style: italic; line-height: 1.4; }

.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: .6rem 1.6rem; }
.chart h3 { margin: .6rem 0 0; }
.chart p { margin: 0; }
svg { display: block; width: 100%; max-width: 30rem; height: auto; overflow: visible; font-size: 11px; }
svg text { fill: var(--quiet); }
svg .halo { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; font-style: italic; }
svg path { fill: none; }
.grid { stroke: var(--rule); stroke-width: .6; }
.floor { stroke: var(--quiet); stroke-dasharray: 4 3; }
.line { stroke-width: 1.7; stroke-linejoin: round; stroke-linecap: round; stroke: var(--train); }
.line.raw { stroke-width: .8; opacity: .3; }
.line.held-out { stroke: var(--held-out); }
svg text.train { fill: var(--train); }
svg text.held-out, circle.held-out { fill: var(--held-out); }
.lost { stroke: var(--wrong); stroke-width: 1.5; }

.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .95rem; border-block: 1.5px solid var(--ink); }
th { font-weight: 600; text-align: left; border-bottom: 1px solid var(--ink); }
th, td { padding: .35rem .9rem .35rem 0; }
th:not(:first-child), .number { text-align: right; }
tbody tr + tr td { border-top: 1px solid var(--rule); }

dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .2rem 1.4rem; }
dt { color: var(--quiet); }
dd { margin: 0; white-space: pre-wrap; }
.findings li { padding: .4rem 0 .4rem .9rem; border-left: 3px solid var(--rule); margin-bottom: .5rem; }
.findings b { font-variant: small-caps; font-weight: 600; margin-right: .3em; }
.findings .error { border-color: var(--wrong); }
.findings .error b { color: var(--wrong); }
.findings .warning { border-color: var(--held-out); }
.findings .warning b { color: var(--held-out); }

.retrieval { display: grid; grid-template-columns: 10rem 1fr; gap: 1.2rem; padding: 1rem 0; align-items: start; }
.retrieval + .retrieval { border-top: 1px solid var(--rule); }
.retrieval .pictures { display: grid; grid-template-columns: repeat(5, 1fr); gap: .6rem; }
.retrieval .pictures img { width: 100%; aspect-ratio: 1; object-fit: cover; }
.retrieval .texts li { display: flex; justify-content: space-between; gap: 1rem; padding: .25rem 0; }
.retrieval .texts small { white-space: nowrap; }
.retrieval .right small, .right .verdict { color: var(--right); }
.retrieval .wrong small { color: var(--quiet); }
.retrieval .pictures .right img { outline: 2px solid var(--right); outline-offset: 2px; }

.answers { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1.8rem; }
.answer { display: grid; grid-template-columns: 9rem 1fr; gap: 1rem; align-items: start; }
.answer img { width: 100%; max-height: 11rem; object-fit: cover; }
.answer ul { margin: .5rem 0; }
.answer li { position: relative; display: flex; justify-content: space-between; padding: .1rem .4rem; margin-bottom: 2px; }
.answer li i { position: absolute; inset: 0 auto 0 0; background: var(--train); opacity: .17; border-radius: 2px; }
.answer.judged li { display: block; padding: 0; margin-bottom: .5rem; }
.judged h3 { margin: 0; }
.alike div { display: grid; grid-template-columns: 1fr 1fr; gap: .6rem; }
.alike figure { margin: 0; }
.alike img { width: 100%; aspect-ratio: 1; object-fit: contain; }
.alike figcaption { font-size: .8rem; overflow-wrap: anywhere; }
.judged .right small { color: var(--right); }
.judged .wrong small { color: var(--wrong); }
.judged ul { max-height: 16rem; overflow-y: auto; }
.key { display: inline-block; width: 1.1em; height: 2px; margin: 0 .4em .25em .8em; background: var(--train); }
.key.held-out { background: var(--held-out); }
.verdict { margin: 0; font-size: .85rem; color: var(--wrong); }

.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.2rem, 1fr)); gap: .9rem; }
.photo { position: relative; overflow: hidden; border-radius: 3px; background-size: 100% 100%; }
.photo img { position: absolute; inset: 0; width: 100%; height: 100%; border-radius: 0; }
.photo::before { content: ""; position: absolute; inset: 0; backdrop-filter: grayscale(.85) brightness(.8); }
.tiles figcaption { display: flex; justify-content: space-between; align-items: baseline; font-style: italic; }
.tiles small { font-style: normal; }
details { margin-top: .8rem; }
summary { cursor: pointer; color: var(--quiet); font-size: .85rem; margin-bottom: .6rem; }

@media (max-width: 34rem) {
  body { font-size: 16px; }
  main { padding-top: 2rem; }
  h1 { font-size: 1.7rem; }
  .retrieval { grid-template-columns: 1fr; }
  .retrieval .query img { max-height: 12rem; }
  .retrieval .pictures { grid-template-columns: repeat(3, 1fr); }
  .answer { grid-template-columns: 7rem 1fr; }
  dl { grid-template-columns: 1fr; }
  dd { margin-bottom: .4rem; }
}
@media print { details > * { display: block; } }
"""
