"""A token as a client of AWS makes it: `GetCallerIdentity`, pre-signed by botocore with the server's name among the signed headers.

python presign.py ENDPOINT REGION SERVER_ID    credentials come from the environment, as for every client of AWS
"""
import base64
import sys

import boto3
from botocore.signers import RequestSigner

endpoint, region, server = sys.argv[1:]
session = boto3.session.Session(region_name=region)
client = session.client("sts", endpoint_url=endpoint)
signer = RequestSigner(client.meta.service_model.service_id, region, "sts", "v4", session.get_credentials(), session.events)
request = {
    "method": "GET",
    "url": f"{endpoint}/?Action=GetCallerIdentity&Version=2011-06-15",
    "body": {},
    "headers": {"x-edgeward-server": server},
    "context": {},
}
url = signer.generate_presigned_url(request, region_name=region, expires_in=300, operation_name="")
print("edgeward-aws-v1." + base64.urlsafe_b64encode(url.encode()).decode().rstrip("="))
