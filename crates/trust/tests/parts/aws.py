"""STS and KMS for tests, on loopback: moto, behind a check of signatures by botocore.

moto takes a pre-signed address of STS for one of S3 and checks no signature. This recomputes the signature with AWS's own client library
for one secret, or for the one that STS gave with a role, refuses what does not fit as AWS does, and hands the rest to moto with the header
that it looks at. Only an exchange of a web identity needs no signature. moto hashes what KMS is told is a hash already, and its
ciphertexts name their key in the open, so that a changed one is of a key that there is not: both are put right.

python aws.py SECRET    prints its address; ends when its input does
"""
import base64
import hmac
import io
import json
import os
import sys
import threading
from datetime import datetime, timedelta, timezone
from urllib.parse import parse_qsl, quote, urlencode

from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from moto.kms.exceptions import AccessDeniedException, InvalidCiphertextException
from moto.kms.responses import KmsResponse
from moto.server import DomainDispatcherApplication, create_backend_app
from moto.sts.models import sts_backends
from werkzeug.serving import make_server

SECRET = sys.argv[1]
MOTO = DomainDispatcherApplication(create_backend_app)


def expected(environ, query):
    """The signature that the address should have, for the headers that it says are signed."""
    key, _, region, service, _ = query["X-Amz-Credential"].split("/")
    headers = {name: environ.get("HTTP_" + name.upper().replace("-", "_"), "") for name in query["X-Amz-SignedHeaders"].split(";")}
    rest = urlencode([(name, value) for name, value in query.items() if name != "X-Amz-Signature"], quote_via=quote, safe="-_.~")
    request = AWSRequest(environ["REQUEST_METHOD"], f"http://{headers['host']}{environ['PATH_INFO']}?{rest}", headers=headers)
    request.context["timestamp"] = query["X-Amz-Date"]
    auth = SigV4QueryAuth(Credentials(key, SECRET), service, region)
    # A prepared address carries its parameters; they are canonical without their own signature.
    return auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)


def secret_of(key):
    """Of keys that STS gave with a role, and of all others."""
    roles = [role for backends in list(sts_backends.values()) for backend in list(backends.values()) for role in backend.assumed_roles]
    return next((role.secret_access_key for role in roles if role.access_key_id == key), SECRET)


def header_signature(environ, body):
    """The signature that the headers should have, beside the one that they have."""
    parts = dict(part.strip().split("=", 1) for part in environ["HTTP_AUTHORIZATION"].split(" ", 1)[1].split(","))
    key, _, region, service, _ = parts["Credential"].split("/")
    own = {"content-type": "CONTENT_TYPE", "content-length": "CONTENT_LENGTH"}
    headers = {name: environ[own.get(name, "HTTP_" + name.upper().replace("-", "_"))] for name in parts["SignedHeaders"].split(";")}
    request = AWSRequest(environ["REQUEST_METHOD"], f"http://{headers['host']}{environ['PATH_INFO']}", headers=headers, data=body)
    request.context["timestamp"] = headers["x-amz-date"]
    auth = SigV4Auth(Credentials(key, secret_of(key)), service, region)
    return auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request), parts["Signature"]


def sign_hash(response, sign=KmsResponse.sign):
    if response._get_param("MessageType") != "DIGEST":
        return sign(response)
    key = response.kms_backend.describe_key(response._get_param("KeyId"))
    digest = base64.b64decode(json.loads(response.body)["Message"])
    signature = key.private_key.private_key.sign(digest, ec.ECDSA(Prehashed(SHA256())))
    return json.dumps({"KeyId": key.arn, "Signature": base64.b64encode(signature).decode(), "SigningAlgorithm": "ECDSA_SHA_256"})


def decrypt_changed(response, decrypt=KmsResponse.decrypt):
    try:
        return decrypt(response)
    except AccessDeniedException:
        raise InvalidCiphertextException() from None


KmsResponse.sign = sign_hash
KmsResponse.decrypt = decrypt_changed


def refuse(start, code, content="text/xml"):
    start("403 Forbidden", [("Content-Type", content)])
    if content == "text/xml":
        return [f"<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code></Error></ErrorResponse>".encode()]
    return [json.dumps({"__type": code, "message": "as AWS would say"}).encode()]


def application(environ, start):
    if "HTTP_AUTHORIZATION" in environ:
        return by_headers(environ, start)
    query = dict(parse_qsl(environ["QUERY_STRING"], keep_blank_values=True))
    if environ["REQUEST_METHOD"] == "POST" and not query:
        return by_web_identity(environ, start)
    try:
        signature = expected(environ, query)
        made = datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
        ends = made + timedelta(seconds=int(query["X-Amz-Expires"]))
    except (KeyError, ValueError):
        return refuse(start, "IncompleteSignature")
    if not hmac.compare_digest(signature, query.get("X-Amz-Signature", "")):
        return refuse(start, "SignatureDoesNotMatch")
    if datetime.now(timezone.utc) > ends:
        return refuse(start, "ExpiredToken")
    environ["HTTP_AUTHORIZATION"] = f"AWS4-HMAC-SHA256 Credential={query['X-Amz-Credential']}"
    return MOTO(environ, start)


def body_of(environ):
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = io.BytesIO(body)
    return body


def by_headers(environ, start):
    body = body_of(environ)
    try:
        wanted, shown = header_signature(environ, body)
    except (KeyError, ValueError, IndexError):
        return refuse(start, "IncompleteSignature", "application/x-amz-json-1.1")
    if not hmac.compare_digest(wanted, shown):
        return refuse(start, "InvalidSignatureException", "application/x-amz-json-1.1")
    return MOTO(environ, start)


def by_web_identity(environ, start):
    form = dict(parse_qsl(body_of(environ).decode()))
    if form.get("Action") != "AssumeRoleWithWebIdentity":
        return refuse(start, "MissingAuthenticationToken")
    if not form.get("WebIdentityToken", "").startswith("platform."):
        return refuse(start, "InvalidIdentityToken")
    # moto finds the service in this header alone.
    environ["HTTP_AUTHORIZATION"] = "AWS4-HMAC-SHA256 Credential=none/20260101/us-east-1/sts/aws4_request"
    return MOTO(environ, start)


server = make_server("127.0.0.1", 0, application, threaded=True)
print(f"http://127.0.0.1:{server.server_port}", flush=True)
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
server.serve_forever()
