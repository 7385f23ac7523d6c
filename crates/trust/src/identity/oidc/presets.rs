//! Well-known issuers: where they are and what their claims mean.

use std::path::Path;

use serde_json::json;

use super::{ClaimMapping, OidcSettings, TenantFrom};

/// Where a pod finds its own credentials and the cluster's certificate.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

fn places(names: &[(&str, &str)]) -> Vec<(String, String)> {
    names.iter().map(|(name, place)| ((*name).to_owned(), (*place).to_owned())).collect()
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

impl OidcSettings {
    /// Microsoft Entra ID, version 2.0 tokens of one tenant. `audience` is the application's ID (or its URI).
    ///
    /// The subject is `oid`, which is one for all applications of the tenant (`sub` is another one for each). A user with very many groups
    /// has a pointer in the token instead of the groups; then the principal has the claim `groups_elsewhere` and no groups.
    pub fn entra_id(tenant_id: &str, audience: &str) -> Self {
        let mut settings = Self::new(format!("https://login.microsoftonline.com/{tenant_id}/v2.0"), audience);
        "entra-id".clone_into(&mut settings.name);
        settings.mapping = ClaimMapping {
            subject: texts(&["/oid", "/sub"]),
            tenant: Some(TenantFrom::Claim("/tid".to_owned())),
            groups: texts(&["/groups", "/roles", "/wids"]),
            kept: places(&[
                ("client_id", "/azp"),
                ("scope", "/scp"),
                ("username", "/preferred_username"),
                ("kind", "/idtyp"),
                ("groups_elsewhere", "/_claim_names/groups"),
            ]),
            required: vec![("/tid".to_owned(), json!(tenant_id)), ("/ver".to_owned(), json!("2.0"))],
            ..ClaimMapping::default()
        };
        settings
    }

    /// Google: ID tokens of users and service accounts. The organisation is the Workspace domain (`hd`), where there is one.
    pub fn google(audience: &str) -> Self {
        let mut settings = Self::new("https://accounts.google.com", audience);
        "google".clone_into(&mut settings.name);
        settings.issuer_aliases = texts(&["accounts.google.com"]);
        settings.mapping = ClaimMapping {
            tenant: Some(TenantFrom::OptionalClaim("/hd".to_owned())),
            groups: Vec::new(),
            kept: places(&[("client_id", "/azp"), ("email", "/email")]),
            ..ClaimMapping::default()
        };
        settings
    }

    /// A realm of Keycloak, `https://HOST/realms/REALM`. The realm is the organisation; groups and roles of the realm are groups.
    pub fn keycloak(realm_url: &str, audience: &str) -> Self {
        let realm_url = realm_url.trim_end_matches('/');
        let realm = realm_url.rsplit('/').next().unwrap_or(realm_url);
        let mut settings = Self::new(realm_url, audience);
        settings.name = format!("keycloak:{realm}");
        settings.mapping = ClaimMapping {
            tenant: Some(TenantFrom::Fixed(realm.to_owned())),
            groups: texts(&["/groups", "/realm_access/roles"]),
            kept: places(&[("client_id", "/azp"), ("scope", "/scope"), ("username", "/preferred_username")]),
            // ID tokens have the same keys and, often, the same audience.
            required: vec![("/typ".to_owned(), json!("Bearer"))],
            ..ClaimMapping::default()
        };
        settings
    }

    /// Service accounts of a Kubernetes cluster, by projected tokens. The namespace is the organisation.
    ///
    /// `issuer` is what `kubectl get --raw /.well-known/openid-configuration` shows. Inside of a pod, [`OidcSettings::in_cluster`] adds how to
    /// reach the API server.
    pub fn kubernetes(issuer: &str, audience: &str) -> Self {
        let mut settings = Self::new(issuer, audience);
        "kubernetes".clone_into(&mut settings.name);
        settings.mapping = ClaimMapping {
            tenant: Some(TenantFrom::Claim("/kubernetes.io/namespace".to_owned())),
            groups: Vec::new(),
            kept: places(&[
                ("namespace", "/kubernetes.io/namespace"),
                ("service_account", "/kubernetes.io/serviceaccount/name"),
                ("pod", "/kubernetes.io/pod/name"),
                ("pod_uid", "/kubernetes.io/pod/uid"),
                ("node", "/kubernetes.io/node/name"),
            ]),
            ..ClaimMapping::default()
        };
        settings
    }

    /// Takes the keys from the API server of the cluster that this process runs in, with the pod's own token. The HTTP client needs the
    /// cluster's certificate, `ca.crt` beside that token.
    #[must_use]
    pub fn in_cluster(mut self) -> Self {
        self.keys.jwks_uri = Some("https://kubernetes.default.svc/openid/v1/jwks".to_owned());
        self.keys.bearer_file = Some(Path::new(SERVICE_ACCOUNT).join("token"));
        self
    }
}
