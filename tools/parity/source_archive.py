"""Fetches the source archive of a Python package from the index that pip is set to, without building it.

Usage: source_archive.py PACKAGE VERSION TARGET
"""

import html.parser
import subprocess
import sys
import urllib.parse
import urllib.request

package, version, target = sys.argv[1:]
said = subprocess.run([sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True)
index = (said.stdout.strip() or "https://pypi.org/simple").rstrip("/")
page = f"{index}/{package}/"
wanted = f"{package.replace('-', '_')}-{version}.tar.gz"
found = []


class Links(html.parser.HTMLParser):
    def handle_starttag(self, tag, attributes):
        link = dict(attributes).get("href") or ""
        if tag == "a" and link.split("#")[0].endswith(wanted):
            found.append(urllib.parse.urljoin(page, link.split("#")[0]))


with urllib.request.urlopen(page) as answer:
    Links().feed(answer.read().decode())
if not found:
    sys.exit(f"{page} names no {wanted}")
with urllib.request.urlopen(found[0]) as answer, open(target, "wb") as out:
    while piece := answer.read(1 << 20):
        out.write(piece)
