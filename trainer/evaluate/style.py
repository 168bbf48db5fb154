"""CSS of the report's pages: light and dark, for screens from 390 to 1280 pixels and more."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d1d22; --soft: #62626c; --paper: #fff; --card: #f5f5f2; --line: #ddd;
        --mark: #2c7a48; --warn: #a85a00 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e9e9ee; --soft: #a2a2ae; --paper: #17171b; --card: #222228; --line: #3a3a42;
          --mark: #6cc48c; --warn: #f0a850 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; background: var(--paper); color: var(--ink);
       font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0 } h2 { font-size: 1.15rem; margin: 2rem 0 .25rem }
p { max-width: 46rem; margin: .4rem 0 } .soft, figcaption, small { color: var(--soft) } a { color: inherit }
.verdict, .warning { background: var(--card); border-left: .3rem solid var(--mark); border-radius: .3rem; padding: .7rem 1rem;
           margin: 1rem 0; font-size: 1.1rem; max-width: none }
.nothing { border-color: var(--soft) } .warning { border-color: var(--warn); font-size: 1rem; margin: .5rem 0 }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem }
figure { margin: 0 } .plots img { width: 100%; height: auto; background: #fff; border-radius: .4rem; display: block }
.wide { background: #fff; border-radius: .4rem; border: 1px solid var(--line) }
.wide img { display: block; height: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; width: 100%; background: var(--paper) }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
tr { background: var(--paper) } th:first-child { position: sticky; left: 0; background: inherit; font-weight: inherit }
thead { font-weight: 600 } tr.best { background: var(--card); font-weight: 600 }
.numbers, .wide { overflow-x: auto; margin: .4rem 0 } .numbers table { width: auto; min-width: min(100%, 24rem) }
.numbers small { display: block; font-weight: 400 }
details { margin: .6rem 0 } summary { cursor: pointer } code { font-size: .9em }
.facts th { font-weight: 600 } .facts td, .facts th { text-align: left; white-space: normal; vertical-align: top }
.facts th { white-space: nowrap; overflow-wrap: normal }
"""
