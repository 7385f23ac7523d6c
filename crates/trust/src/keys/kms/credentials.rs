//! Credentials of AWS: given, or asked for with what the platform has put beside this process.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use aws_credential_types::Credentials as Keys;
use aws_smithy_runtime_api::client::identity::Identity;
use reqwest::{Method, StatusCode, Url};
use roxmltree::Document;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::{
    ErrorKind, TrustError,
    identity::{
        Http,
        http::{Request, authority_url, origin},
    },
    keys::{SecretSource, platform_token},
};

const ANSWER_BYTES_MAX: usize = 64 << 10;
/// New ones are asked for when less than this is left.
const EARLY: Duration = Duration::from_secs(300);
/// Where the platform's own services listen, which speak HTTP and cannot be reached from elsewhere.
const LINK_LOCAL: [&str; 3] = ["169.254.169.254", "169.254.170.2", "169.254.170.23"];

/// Where credentials come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(tag = "source", rename_all = "snake_case", deny_unknown_fields)]
pub enum CredentialSettings {
    /// What the environment says, in the order of AWS's own libraries: `AWS_ACCESS_KEY_ID`, `AWS_WEB_IDENTITY_TOKEN_FILE`,
    /// `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI` or `…_FULL_URI`, and else the machine's role.
    #[default]
    Environment,
    /// A key and its secret.
    Keys {
        /// `AKIA…`.
        access_key_id: String,
        /// Its secret.
        secret_access_key: SecretSource,
        /// Of keys that end.
        session_token: Option<SecretSource>,
    },
    /// A role that a token of the platform is good for: service accounts of EKS, build servers.
    WebIdentity {
        /// The role.
        role_arn: String,
        /// The token, which the platform renews.
        token_file: PathBuf,
        /// Another address of STS than the region's.
        endpoint: Option<String>,
    },
    /// The role of a container: ECS, EKS Pod Identity.
    Container {
        /// Where it is asked for.
        uri: String,
        /// What it is asked with, where that is needed.
        token_file: Option<PathBuf>,
    },
    /// The role of the machine (IMDSv2).
    Instance {
        /// Where it is asked for.
        #[serde(default = "instance")]
        endpoint: String,
    },
}

fn instance() -> String {
    format!("http://{}", LINK_LOCAL[0])
}

impl CredentialSettings {
    /// Lets the paths of files be changed.
    pub(crate) fn place(&mut self, place: impl Fn(&mut PathBuf)) {
        match self {
            Self::Environment | Self::Instance { .. } => {}
            Self::Keys { secret_access_key, session_token, .. } => {
                secret_access_key.place(&place);
                if let Some(token) = session_token {
                    token.place(&place);
                }
            }
            Self::WebIdentity { token_file, .. } => place(token_file),
            Self::Container { token_file, .. } => token_file.iter_mut().for_each(place),
        }
    }

    /// What the variables of an environment say.
    fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Self, TrustError> {
        let env = |name: &str| SecretSource::Env(name.to_owned());
        if let Some(access_key_id) = variable("AWS_ACCESS_KEY_ID") {
            let session_token = variable("AWS_SESSION_TOKEN").map(|_| env("AWS_SESSION_TOKEN"));
            return Ok(Self::Keys { access_key_id, secret_access_key: env("AWS_SECRET_ACCESS_KEY"), session_token });
        }
        if let (Some(file), Some(role_arn)) = (variable("AWS_WEB_IDENTITY_TOKEN_FILE"), variable("AWS_ROLE_ARN")) {
            return Ok(Self::WebIdentity { role_arn, token_file: file.into(), endpoint: None });
        }
        let relative = variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
        let uri = relative.map(|path| format!("http://{}{path}", LINK_LOCAL[1]));
        if let Some(uri) = uri.or_else(|| variable("AWS_CONTAINER_CREDENTIALS_FULL_URI")) {
            let token_file = variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").map(Into::into);
            return Ok(Self::Container { uri, token_file });
        }
        if variable("AWS_EC2_METADATA_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Err(unavailable("there are none in the environment, and the machine's are switched off there"));
        }
        Ok(Self::Instance { endpoint: instance() })
    }
}

/// A key, its secret, and until when they hold.
#[derive(Clone)]
pub struct Credentials {
    id: String,
    secret: Zeroizing<String>,
    session: Option<Zeroizing<String>>,
    ends_at: Option<SystemTime>,
}

impl Credentials {
    /// As requests are signed with.
    pub fn identity(&self) -> Identity {
        let session = self.session.as_ref().map(|token| token.to_string());
        Keys::new(&self.id, self.secret.as_str(), session, self.ends_at, "edgeward").into()
    }

    pub fn nears_its_end(&self, now: SystemTime) -> bool {
        self.have_ended(now + EARLY)
    }

    pub fn have_ended(&self, now: SystemTime) -> bool {
        self.ends_at.is_some_and(|end| end <= now)
    }
}

/// Where credentials are fetched.
pub struct Source {
    settings: CredentialSettings,
    url: Option<Url>,
}

impl Source {
    pub fn new(settings: &CredentialSettings, region: &str, suffix: &str) -> Result<Self, TrustError> {
        let settings = match settings {
            CredentialSettings::Environment => CredentialSettings::of(|name| std::env::var(name).ok())?,
            other => other.clone(),
        };
        let url = match &settings {
            CredentialSettings::WebIdentity { endpoint, .. } => {
                let own = format!("https://sts.{region}.{suffix}");
                Some(authority_url(endpoint.as_deref().unwrap_or(&own))?)
            }
            CredentialSettings::Container { uri, .. } => Some(platform_url(uri)?),
            CredentialSettings::Instance { endpoint } => Some(platform_url(endpoint)?),
            CredentialSettings::Environment | CredentialSettings::Keys { .. } => None,
        };
        Ok(Self { settings, url })
    }

    pub async fn fetch(&self, http: &Http) -> Result<Credentials, TrustError> {
        match (&self.settings, &self.url) {
            (CredentialSettings::Keys { access_key_id, secret_access_key, session_token }, _) => Ok(Credentials {
                id: access_key_id.clone(),
                secret: secret_access_key.read_text()?,
                session: session_token.as_ref().map(SecretSource::read_text).transpose()?,
                ends_at: None,
            }),
            (CredentialSettings::WebIdentity { role_arn, token_file, .. }, Some(url)) => {
                web_identity(http, url, role_arn, &platform_token(token_file)?).await
            }
            (CredentialSettings::Container { token_file, .. }, Some(url)) => {
                let token = token_file.as_deref().map(platform_token).transpose()?;
                let headers: Vec<_> = token.iter().map(|token| ("authorization", token.as_str())).collect();
                from_json(&get(http, url, &headers).await?)
            }
            (CredentialSettings::Instance { .. }, Some(url)) => instance_role(http, url).await,
            _ => Err(unavailable("they have no source")),
        }
    }
}

/// An address of the platform: TLS, this machine, or one that cannot be reached from elsewhere.
fn platform_url(text: &str) -> Result<Url, TrustError> {
    match Url::parse(text) {
        Ok(url) if url.scheme() == "http" && url.host_str().is_some_and(|host| LINK_LOCAL.contains(&host)) => Ok(url),
        _ => authority_url(text),
    }
}

/// Exchanges a token (`AssumeRoleWithWebIdentity`).
async fn web_identity(http: &Http, url: &Url, role: &str, token: &str) -> Result<Credentials, TrustError> {
    let form = [
        ("Action", "AssumeRoleWithWebIdentity"),
        ("Version", "2011-06-15"),
        ("RoleArn", role),
        ("RoleSessionName", "edgeward"),
        ("WebIdentityToken", token),
    ];
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish().into_bytes();
    let headers = [("content-type", "application/x-www-form-urlencoded"), ("accept", "text/xml")];
    let request = Request { method: Method::POST, url, headers: &headers, body: Some(body) };
    let (status, body) = http.send(request, ANSWER_BYTES_MAX).await?;
    let body = Zeroizing::new(body);
    let document = std::str::from_utf8(&body).ok().and_then(|text| Document::parse(text).ok());
    let field = |name: &str| {
        let node = document.as_ref()?.descendants().find(|node| node.tag_name().name() == name)?;
        node.text().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    if status != StatusCode::OK {
        let kind = if status.is_client_error() { ErrorKind::Unverified } else { ErrorKind::Unavailable };
        let code = field("Code").unwrap_or_default();
        let text = format!("role `{role}`: STS at `{}` answered {status} `{}`", origin(url), code.escape_debug());
        return Err(TrustError::new(kind, text));
    }
    read(&field).ok_or_else(|| unavailable(&format!("answer of STS at `{}` holds none", origin(url))))
}

/// Asks the machine's metadata for the credentials of its role: by a token first, which a request that was smuggled through does not have.
async fn instance_role(http: &Http, url: &Url) -> Result<Credentials, TrustError> {
    let at = |path: &str| {
        let mut at = url.clone();
        at.set_path(path);
        at
    };
    let lifetime = [("x-aws-ec2-metadata-token-ttl-seconds", "300")];
    let token_url = at("/latest/api/token");
    let request = Request { method: Method::PUT, url: &token_url, headers: &lifetime, body: None };
    let token = text(url, http.send(request, ANSWER_BYTES_MAX).await?)?;
    let headers = [("x-aws-ec2-metadata-token", token.as_str())];
    let roles = get(http, &at("/latest/meta-data/iam/security-credentials/"), &headers).await?;
    let taken = |c: char| c.is_ascii_alphanumeric() || "+=,.@_-".contains(c);
    let role = roles.lines().next().map(str::trim).filter(|role| !role.is_empty() && role.chars().all(taken));
    let role = role.ok_or_else(|| unavailable("this machine has no role"))?;
    from_json(&get(http, &at(&format!("/latest/meta-data/iam/security-credentials/{role}")), &headers).await?)
}

async fn get(http: &Http, url: &Url, headers: &[(&'static str, &str)]) -> Result<Zeroizing<String>, TrustError> {
    text(url, http.get(url, headers, ANSWER_BYTES_MAX).await?)
}

fn text(url: &Url, (status, body): (StatusCode, Vec<u8>)) -> Result<Zeroizing<String>, TrustError> {
    match String::from_utf8(body).map(Zeroizing::new) {
        Ok(body) if status == StatusCode::OK => Ok(body),
        _ => Err(unavailable(&format!("`{}` answered {status}", origin(url)))),
    }
}

fn from_json(text: &str) -> Result<Credentials, TrustError> {
    let said: serde_json::Value = serde_json::from_str(text).map_err(|error| unavailable(&error.to_string()))?;
    let field = |name: &str| {
        // STS calls it otherwise.
        let name = if name == "SessionToken" { "Token" } else { name };
        said.get(name)?.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
    };
    read(&field).ok_or_else(|| unavailable("the platform's answer holds none"))
}

/// Credentials that end.
fn read(field: &impl Fn(&str) -> Option<String>) -> Option<Credentials> {
    Some(Credentials {
        id: field("AccessKeyId")?,
        secret: field("SecretAccessKey")?.into(),
        session: Some(field("SessionToken")?.into()),
        ends_at: Some(humantime::parse_rfc3339(&field("Expiration")?).ok()?),
    })
}

fn unavailable(why: &str) -> TrustError {
    TrustError::new(ErrorKind::Unavailable, format!("credentials of AWS: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_says_which_credentials_in_the_order_of_aws() {
        let read = |variables: &[(&str, &str)]| {
            CredentialSettings::of(|name| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            })
        };
        let env = |name: &str| SecretSource::Env(name.to_owned());
        let keys = CredentialSettings::Keys {
            access_key_id: "A".into(),
            secret_access_key: env("AWS_SECRET_ACCESS_KEY"),
            session_token: Some(env("AWS_SESSION_TOKEN")),
        };
        let role = [("AWS_WEB_IDENTITY_TOKEN_FILE", "/t"), ("AWS_ROLE_ARN", "r")];
        let both = [&role[..], &[("AWS_ACCESS_KEY_ID", "A"), ("AWS_SESSION_TOKEN", "t")]].concat();
        assert_eq!(read(&both).unwrap(), keys);
        assert!(matches!(read(&role).unwrap(), CredentialSettings::WebIdentity { .. }));
        let relative = [("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/x")];
        let CredentialSettings::Container { uri, .. } = read(&relative).unwrap() else { panic!("{relative:?}") };
        assert_eq!(uri, "http://169.254.170.2/v2/x");
        assert_eq!(read(&[]).unwrap(), CredentialSettings::Instance { endpoint: "http://169.254.169.254".into() });
        assert_eq!(read(&[("AWS_EC2_METADATA_DISABLED", "TRUE")]).unwrap_err().kind(), ErrorKind::Unavailable);
    }

    #[test]
    fn a_platform_is_asked_in_the_open_only_where_nobody_listens() {
        for good in ["http://169.254.170.23/v1/credentials", "http://127.0.0.1:5/x", "https://a.example/x"] {
            platform_url(good).unwrap();
        }
        for bad in
            ["http://a.example/x", "http://169.254.169.254.example/x", "http://10.0.0.1/", "ftp://127.0.0.1/", ""]
        {
            assert_eq!(platform_url(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        }
    }

    #[test]
    fn answers_without_all_parts_are_none() {
        let good =
            "{\"AccessKeyId\":\"A\",\"SecretAccessKey\":\"s\",\"Token\":\"t\",\"Expiration\":\"2030-01-01T00:00:00Z\"}";
        let read = from_json(good).unwrap();
        let end = humantime::parse_rfc3339("2030-01-01T00:00:00Z").unwrap();
        assert!(read.have_ended(end) && !read.nears_its_end(end - Duration::from_secs(301)));
        assert!(read.nears_its_end(end - Duration::from_secs(299)));
        let changed = [good.replace("2030", "soon"), good.replace("\"s\"", "\"\""), good.replace("Token", "T")];
        for bad in ["", "{}", "[]", "null"].into_iter().chain(changed.iter().map(String::as_str)) {
            assert!(from_json(bad).is_err(), "{bad}");
        }
    }
}
