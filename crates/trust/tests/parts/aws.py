"""STS for tests, on loopback: moto, behind a check of pre-signed addresses by botocore.

moto takes a pre-signed address of STS for one of S3 and checks no signature. This recomputes the signature with AWS's own client library
for one secret, refuses what does not fit as AWS does, and hands the rest to moto with the header that it looks at.

python aws.py SECRET    prints its address; ends when its input does
"""
import hmac
import os
import sys
import threading
from datetime import datetime, timedelta, timezone
from urllib.parse import parse_qsl, quote, urlencode

from botocore.auth import SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from moto.server import DomainDispatcherApplication, create_backend_app
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


def refuse(start, code):
    start("403 Forbidden", [("Content-Type", "text/xml")])
    return [f"<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code></Error></ErrorResponse>".encode()]


def application(environ, start):
    query = dict(parse_qsl(environ["QUERY_STRING"], keep_blank_values=True))
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


server = make_server("127.0.0.1", 0, application, threaded=True)
print(f"http://127.0.0.1:{server.server_port}", flush=True)
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
server.serve_forever()
