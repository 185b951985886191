"""The page's style: two palettes, one column that fits a phone, and paper."""

from __future__ import annotations

from lit_cpt.report.palette import PALETTE

RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:1.0625rem/1.55 var(--serif)}
main{max-width:66rem;margin:0 auto;padding:clamp(1.5rem,5vw,4rem) clamp(1rem,4vw,2.5rem)}
h1{font-size:clamp(1.7rem,5vw,2.4rem);line-height:1.15;font-weight:600;margin:0 0 .4rem;letter-spacing:-.01em}
h2{font-size:1.25rem;font-weight:600;margin:3rem 0 .8rem;padding-top:.9rem;border-top:1px solid var(--rule)}
h1,h2,p,caption,th,li,summary{overflow-wrap:anywhere}
p,ul{max-width:44rem;margin:.6rem 0}
ul{padding-left:1.2rem}
.facts,.small,.legend{font:.9rem/1.5 var(--sans);color:var(--muted)}
.verdict{font-size:clamp(1.15rem,2.6vw,1.35rem);line-height:1.45;margin:1.4rem 0}
figure{margin:1rem 0}
svg{display:block;width:100%;height:auto}
svg text{font-family:var(--sans)!important}
svg *{stroke-linejoin:round;stroke-linecap:butt}
.narrow{display:none;max-width:34rem}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(17.5rem,100%),1fr));gap:1.2rem 1.6rem}
.panels figure{margin:0}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.3rem;margin:.6rem 0;padding:0;list-style:none;max-width:none}
.legend i{display:inline-block;width:1.4em;height:.22em;border-radius:1px;margin-right:.5em;vertical-align:.25em}
.scroll{overflow-x:auto;margin:1.1rem 0;background:
linear-gradient(to left,var(--page) 1rem,transparent) right/2.5rem 100% no-repeat local,
linear-gradient(to left,var(--rule),transparent) right/.8rem 100% no-repeat scroll}
table{border-collapse:separate;border-spacing:0;
font:.9rem/1.4 var(--sans);font-variant-numeric:tabular-nums;min-width:min(100%,34rem)}
caption{text-align:left;color:var(--muted);font-size:.9rem;padding:0 0 .45rem}
caption span{display:inline-block;position:sticky;left:0;max-width:calc(100vw - 2.2rem)}
th,td{padding:.36rem .9rem;text-align:right;white-space:nowrap;vertical-align:baseline}
th:first-child,td:first-child{padding-left:0;text-align:left}
thead th{font-weight:500;white-space:normal;max-width:14rem;overflow-wrap:break-word;vertical-align:bottom;
color:var(--muted);border-bottom:1px solid var(--ink)}
tbody th{font-weight:500;position:sticky;left:0;background:var(--page);min-width:6.4rem;max-width:16rem;
white-space:normal}
tbody tr+tr>*{border-top:1px solid var(--rule)}
tbody th small{white-space:nowrap}
table small{color:var(--muted);font-weight:400;font-size:.86em;margin-left:.25em}
.summed tbody tr:last-child>*{border-top:1px solid var(--ink);font-weight:600}
.words td,.words thead th{text-align:left}
.words thead th{white-space:nowrap}
.words td:last-child{white-space:normal;min-width:14rem;overflow-wrap:anywhere}
details{margin:.6rem 0}
summary{cursor:pointer;font:.9rem/1.5 var(--sans)}
pre{font:.8rem/1.5 ui-monospace,Menlo,Consolas,monospace;background:var(--shade);padding:.9rem 1.1rem;overflow:auto;
max-height:32rem;border-radius:3px}
.scroll:focus-visible,summary:focus-visible{outline:2px solid var(--run0);outline-offset:2px}
@media screen and (max-width:52rem){.narrow{display:block}.wide{display:none}}
@media(max-width:42rem){th,td{padding:.36rem .55rem}
tbody th{max-width:8.5rem}table small{display:block;margin:0}}
@media print{body{font-size:10pt}main{max-width:none;padding:0}h2,.legend,caption{break-after:avoid}
tbody th{position:static;background:none}figure,tr{break-inside:avoid}.scroll,pre{overflow:visible;max-height:none;
background:none}table{width:100%;min-width:0;font-size:8pt}th,td,.words td:last-child{padding:.2rem .3rem;min-width:0;
white-space:normal}.facts,.small,.legend,caption,summary{font-size:9pt}
table small{display:block;margin:0}thead{display:table-header-group}
pre{white-space:pre-wrap}.panels{grid-template-columns:repeat(3,1fr)}}
"""


def stylesheet() -> str:
    """CSS of the page; paper is always light."""
    light, dark = (";".join(f"--{name}:{pair[side]}" for name, pair in PALETTE.items()) for side in (0, 1))
    return (':root{color-scheme:light dark;--serif:Charter,"Bitstream Charter","Iowan Old Style",Georgia,serif;'
            f'--sans:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;{light}}}\n'
            f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}{RULES}")
