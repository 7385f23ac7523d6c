"""Writes the seed corpora beside this file: `python seeds.py`. A manifest plain and sealed, a signed bundle of each kind, an OCI layout."""
import base64
import hashlib
import json
import pathlib

OUT = pathlib.Path(__file__).parent / "seeds"


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def sha(data):
    return hashlib.sha256(data).hexdigest()


def manifest(graph, sealed=None):
    entry = {"sha256": sha(graph), "size": len(graph)}
    if sealed:
        entry["sealed"] = {"sha256": sha(sealed), "size": len(sealed)}
    variant = {"name": "fp32", "graph": "fp32/model.onnx", "precision": "fp32", "engine": "rten", "threads": 2,
               "figures": {"latency_ms_p50": 1.5}}
    return {"format": "edgeward-release-1", "name": "chest-xray", "version": "1.4.0", "sequence": 3, "variants": [variant],
            "files": {"fp32/model.onnx": entry}}


graph = b"graph"
plain = canonical(manifest(graph))
(OUT / "manifest/plain").write_bytes(plain)
(OUT / "manifest/sealed").write_bytes(canonical(manifest(graph, b"sealed graph")))
with_report = manifest(graph) | {"report": "report.json"}
with_report["files"]["report.json"] = {"sha256": sha(b"{}"), "size": 2}
(OUT / "manifest/report").write_bytes(canonical(with_report))

resources = [{"name": "edgeward.json", "algorithm": "sha256", "digest": sha(plain)},
             {"name": "fp32/model.onnx", "algorithm": "sha256", "digest": sha(graph)}]
root = hashlib.sha256(b"".join(bytes.fromhex(r["digest"]) for r in resources)).hexdigest()
statement = {
    "_type": "https://in-toto.io/Statement/v1",
    "subject": [{"name": "chest-xray", "digest": {"sha256": root}}],
    "predicateType": "https://model_signing/signature/v1.0",
    "predicate": {"serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": []},
                  "resources": resources},
}
(OUT / "bundle/statement").write_bytes(canonical(statement))


def bundle(material):
    envelope = {"payload": base64.b64encode(canonical(statement)).decode(), "payloadType": "application/vnd.in-toto+json",
                "signatures": [{"sig": base64.b64encode(b"0\x06\x02\x01\x01\x02\x01\x01").decode(), "keyid": ""}]}
    return canonical({"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
                      "verificationMaterial": material | {"tlogEntries": []}, "dsseEnvelope": envelope})


certificate = {"rawBytes": base64.b64encode(b"\x30\x03\x02\x01\x00").decode()}
(OUT / "bundle/key").write_bytes(bundle({"publicKey": {"hint": sha(b"key")}}))
(OUT / "bundle/chain").write_bytes(bundle({"x509CertificateChain": {"certificates": [certificate, certificate]}}))
(OUT / "bundle/sigstore").write_bytes(bundle({"certificate": certificate}))

kind = "application/vnd.edgeward.release"
described = lambda media, blob, more={}: {"mediaType": media, "digest": f"sha256:@{blob}", "size": f"#{blob}"} | more
titled = lambda blob, path: described(f"{kind}.file.v1", blob, {"annotations": {"org.opencontainers.image.title": path}})
image = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": f"{kind}.v1",
         "config": described(f"{kind}.manifest.v1+json", 1), "layers": [titled(2, "fp32/model.onnx")]}
entry = described("application/vnd.oci.image.manifest.v1+json", 0, {
    "artifactType": f"{kind}.v1", "annotations": {"org.opencontainers.image.ref.name": "chest-xray:1.4.0"}})
index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]}
numbers = lambda text: text.replace(b'"#0"', b"#0").replace(b'"#1"', b"#1").replace(b'"#2"', b"#2").replace(b'"#3"', b"#3")
parts = [canonical({"imageLayoutVersion": "1.0.0"}), numbers(canonical(index)), numbers(canonical(image)), plain, graph]
(OUT / "oci/release").write_bytes(b"\xff".join(parts))
signed = image | {"layers": [titled(2, "fp32/model.onnx"), titled(3, "model.sig")]}
parts = parts[:2] + [numbers(canonical(signed)), plain, graph, bundle({"publicKey": {"hint": "a"}})]
(OUT / "oci/signed").write_bytes(b"\xff".join(parts))
