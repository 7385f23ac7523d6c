//! What STS answers.

use roxmltree::{Document, Node};

use crate::{
    TrustError,
    identity::{http::unavailable, jose::unverified},
};

/// The result of `GetCallerIdentity`.
#[derive(Debug)]
pub(super) struct Caller {
    pub arn: String,
    pub account: String,
    pub user_id: String,
}

impl Caller {
    pub(super) fn parse(body: &[u8]) -> Result<Self, TrustError> {
        let wrong = |what: &str| unavailable(format!("answer of AWS is not that of `GetCallerIdentity`: {what}"));
        let text = std::str::from_utf8(body).map_err(|e| wrong(&e.to_string()))?;
        let document = Document::parse(text).map_err(|e| wrong(&e.to_string()))?;
        let root = document.root_element();
        let result =
            (root.tag_name().name() == "GetCallerIdentityResponse").then(|| child(root, "GetCallerIdentityResult"));
        let result = result.flatten().ok_or_else(|| wrong("no result"))?;
        let field = |name: &str| {
            let text = child(result, name).and_then(|n| n.text()).map(str::trim).filter(|t| !t.is_empty());
            text.map(str::to_owned).ok_or_else(|| wrong(&format!("no `{name}`")))
        };
        let caller = Self { arn: field("Arn")?, account: field("Account")?, user_id: field("UserId")? };
        if caller.arn.split(':').nth(4) != Some(&caller.account) {
            return Err(unverified(format!(
                "ARN `{}` is not of account `{}`",
                caller.arn.escape_debug(),
                caller.account.escape_debug()
            )));
        }
        Ok(caller)
    }

    /// The role of an assumed role, as policies name it; else the ARN itself.
    pub(super) fn principal_arn(&self) -> String {
        let parts: Vec<_> = self.arn.splitn(6, ':').collect();
        if let ["arn", partition, "sts", _, account, resource] = parts.as_slice()
            && let Some(role) = resource.strip_prefix("assumed-role/").and_then(|rest| rest.split_once('/'))
        {
            return format!("arn:{partition}:iam::{account}:role/{}", role.0);
        }
        self.arn.clone()
    }
}

/// The code of an error, e.g. `SignatureDoesNotMatch`.
pub(super) fn error_code(body: &[u8]) -> Option<String> {
    let document = Document::parse(std::str::from_utf8(body).ok()?).ok()?;
    let code = document.descendants().find(|node| node.has_tag_name_local("Code"))?;
    code.text().map(str::to_owned)
}

fn child<'a>(node: Node<'a, 'a>, name: &str) -> Option<Node<'a, 'a>> {
    node.children().find(|child| child.has_tag_name_local(name))
}

trait LocalName {
    fn has_tag_name_local(&self, name: &str) -> bool;
}

impl LocalName for Node<'_, '_> {
    /// Whatever the namespace: stand-ins of AWS leave it out.
    fn has_tag_name_local(&self, name: &str) -> bool {
        self.is_element() && self.tag_name().name() == name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(arn: &str, account: &str) -> String {
        format!(
            "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><GetCallerIdentityResult><Arn>{arn}</Arn>\
             <UserId>U</UserId><Account>{account}</Account></GetCallerIdentityResult></GetCallerIdentityResponse>"
        )
    }

    #[test]
    fn a_role_is_known_by_its_role_not_by_its_session() {
        let rows = [
            ("arn:aws:sts::1:assumed-role/infer/i-1", "arn:aws:iam::1:role/infer"),
            ("arn:aws-cn:sts::1:assumed-role/infer/a/b", "arn:aws-cn:iam::1:role/infer"),
            ("arn:aws:iam::1:user/path/camera", "arn:aws:iam::1:user/path/camera"),
            ("arn:aws:sts::1:federated-user/camera", "arn:aws:sts::1:federated-user/camera"),
            ("arn:aws:iam::1:root", "arn:aws:iam::1:root"),
        ];
        for (arn, expected) in rows {
            assert_eq!(Caller::parse(answer(arn, "1").as_bytes()).unwrap().principal_arn(), expected);
        }
    }

    #[test]
    fn other_answers_are_no_identity() {
        let deep = "<a>".repeat(5000);
        let entities = "<!DOCTYPE x [<!ENTITY a \"1\">]><GetCallerIdentityResponse>&a;</GetCallerIdentityResponse>";
        let bad =
            ["", "<", "{}", "<ListAllMyBucketsResult/>", "<GetCallerIdentityResponse/>", &deep, entities, "\u{0}"];
        for body in bad {
            assert!(Caller::parse(body.as_bytes()).is_err(), "{body:.40}");
        }
        assert!(Caller::parse(b"\xff\xfe").is_err());
        assert!(Caller::parse(answer("arn:aws:iam::2:root", "1").as_bytes()).is_err());
        assert!(Caller::parse(answer("camera", "1").as_bytes()).is_err());
        assert_eq!(error_code(b"<E><Error><Code>Denied</Code></Error></E>").as_deref(), Some("Denied"));
    }
}
