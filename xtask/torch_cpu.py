"""Makes the CUDA build of torch, the only one that the package index has for Linux, importable without CUDA's libraries.

Run by the Python of the environment that holds torch. For every CUDA library that torch's own libraries ask for and
that is not there, writes a stand-in of the same name whose functions trap. None is ever called where
`torch.cuda.is_available()` is false; `libcudart` must be the real one, since torch registers its kernels with it at
load. Needs `cc` and `readelf`. Never use such an environment on a machine with a GPU.
"""

import collections
import pathlib
import re
import subprocess
import sys
import sysconfig
import tempfile

SITE = pathlib.Path(sysconfig.get_path("purelib"))
TORCH = SITE / "torch" / "lib"
CUDA_LIBRARY = re.compile(r"lib(cu|nv|nccl)")
CUDA_SYMBOL = re.compile(r"(cu|nv|p?nccl)[A-Za-z]")


def readelf(option, library):
    return subprocess.run(["readelf", "-W", option, library], check=True, capture_output=True, text=True).stdout


class Needs:
    """What torch's libraries ask of others, and what they bring."""

    def __init__(self, libraries):
        self.sonames, self.defined, self.wanted = set(), set(), set()
        self.versions = collections.defaultdict(set)
        for library in libraries:
            self.sonames |= set(re.findall(r"\(NEEDED\).*\[(.+?)\]", readelf("--dynamic", library)))
            self._read_versions(readelf("--version-info", library))
            self._read_symbols(readelf("--dyn-syms", library))

    def _read_versions(self, text):
        soname = None
        for line in text.splitlines():
            if found := re.search(r"Version: 1\s+File: (\S+)", line):
                soname = found[1]
            elif soname and (found := re.search(r"Name: (\S+)\s+Flags", line)):
                self.versions[soname].add(found[1])
            elif not line.strip():
                soname = None

    def _read_symbols(self, text):
        for line in text.splitlines():
            fields = line.split()
            if len(fields) < 8 or not fields[0].rstrip(":").isdigit():
                continue
            name, _, version = fields[7].replace("@@", "@").partition("@")
            if fields[6] != "UND":
                self.defined.add(name)
            elif fields[4] == "GLOBAL":
                self.wanted.add((name, version))


def write_library(path, by_version):
    """`by_version`: version name ('' = none) to the functions that carry it."""
    names = sorted({name for names in by_version.values() for name in names})
    nodes = [f"{version} {{ global: {' '.join(n + ';' for n in sorted(names))} }};" for version, names in by_version.items() if version]
    with tempfile.TemporaryDirectory() as folder:
        source, script = pathlib.Path(folder, "standin.c"), pathlib.Path(folder, "standin.map")
        source.write_text("".join(f"void {name}(void) {{ __builtin_trap(); }}\n" for name in names))
        script.write_text("\n".join(nodes))
        versioned = [f"-Wl,--version-script={script}"] if nodes else []
        subprocess.run(["cc", "-shared", "-nostdlib", "-w", "-fno-builtin", f"-Wl,-soname,{path.name}", *versioned, "-o", path, source], check=True)


def main():
    real = next((SITE / "nvidia").rglob("libcudart.so.*"))
    link = TORCH / real.name
    if not link.exists():
        link.symlink_to(real)
    needs = Needs(p for p in TORCH.glob("*.so*") if p.is_file() and not p.is_symlink())
    missing = sorted(s for s in needs.sonames if CUDA_LIBRARY.match(s) and not (TORCH / s).exists())
    loose = {name for name, version in needs.wanted if not version and CUDA_SYMBOL.match(name)} - needs.defined
    for index, soname in enumerate(missing):
        by_version = {v: {n for n, version in needs.wanted if version == v} for v in needs.versions[soname]}
        if index == 0:
            # A name without a version may come from any library.
            by_version[""] = loose
        write_library(TORCH / soname, by_version)
    print(f"torch without CUDA: {len(missing)} stand-ins written", file=sys.stderr)


main()
