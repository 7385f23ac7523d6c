// An OpenID provider on loopback for tests, by the library `oidc-provider`: access tokens as JWT for three clients, of which one is bound
// by DPoP and, over TLS, one by its certificate. Settings come as environment variables:
//   MODULES       folder with `oidc-provider` in it (a node_modules)
//   PORT          port, 0 for a free one
//   ALG           ES256, RS256 or EdDSA
//   KEY CERT CA   PEM files; with them it speaks TLS and asks for a client certificate
// The first line that it prints is its issuer.
import { generateKeyPairSync } from 'node:crypto';
import { readFileSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import { pathToFileURL } from 'node:url';

const { MODULES, PORT = '0', ALG = 'ES256', KEY, CERT, CA } = process.env;
const { default: Provider } = await import(pathToFileURL(`${MODULES}/oidc-provider/lib/index.js`).href);

const audience = 'https://edge.example';
const key = (type, alg, options) => {
  const jwk = generateKeyPairSync(type, options).privateKey.export({ format: 'jwk' });
  return { ...jwk, alg, use: 'sig', kid: `${alg}-${jwk.x?.slice(0, 8) ?? jwk.n.slice(0, 8)}` };
};
const client = (name, more) => ({
  client_id: name,
  client_secret: `secret of ${name}`,
  grant_types: ['client_credentials'],
  response_types: [],
  redirect_uris: [],
  token_endpoint_auth_method: 'client_secret_post',
  ...more,
});

const certificate = (context) => context.socket.getPeerX509Certificate?.();
const configuration = {
  clients: [client('plain'), client('proven', { dpop_bound_access_tokens: true })],
  clientAuthMethods: ['client_secret_post'],
  jwks: {
    keys: [
      key('ec', 'ES256', { namedCurve: 'P-256' }),
      key('rsa', 'RS256', { modulusLength: 2048 }),
      key('ed25519', 'EdDSA'),
    ],
  },
  scopes: ['infer'],
  cookies: { keys: ['for tests'] },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    dPoP: { enabled: true },
    mTLS: { enabled: Boolean(KEY), certificateBoundAccessTokens: true, getCertificate: certificate },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => audience,
      useGrantedResource: () => true,
      getResourceServerInfo: () => ({ scope: 'infer', audience, accessTokenFormat: 'jwt', jwt: { sign: { alg: ALG } } }),
    },
  },
};
if (KEY) configuration.clients.push(client('certified', { tls_client_certificate_bound_access_tokens: true }));

// The issuer is known once the port is; requests come later.
let answer;
const listener = (request, response) => answer(request, response);
const tls = KEY && { key: readFileSync(KEY), cert: readFileSync(CERT), ca: readFileSync(CA), requestCert: true, rejectUnauthorized: false };
const server = tls ? https.createServer(tls, listener) : http.createServer(listener);
server.listen(Number(PORT), '127.0.0.1', () => {
  const issuer = `${tls ? 'https' : 'http'}://127.0.0.1:${server.address().port}`;
  answer = new Provider(issuer, configuration).callback();
  console.log(issuer);
});
process.stdin.on('end', () => process.exit(0)).resume(); // ends with the test that started it
