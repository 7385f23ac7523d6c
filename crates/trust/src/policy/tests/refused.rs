//! Files that must be refused, each with its place.

use super::*;

fn complaint(policies: &str, entities: &str) -> String {
    let file = |name: &str, text: &str| SourceFile { name: name.to_owned(), text: text.to_owned() };
    let sources = Sources { policies: vec![file("p.cedar", policies)], entities: vec![file("e.toml", entities)] };
    Rules::compile(&sources, 1).err().map_or_else(String::new, |error| error.to_string())
}

#[test]
fn policies_are_refused_by_place() {
    let rows = [
        ("permit(principal, action, resource)", "p.cedar:1:36"),
        ("permit(principal, action, resource);\n\npermitt(principal, action, resource);", "p.cedar:3:1"),
        (
            "// ü\npermit(principal, action == Action::\"inferr\", resource);",
            "p.cedar:2:29: for policy `p.cedar:2`, unrecognized action `Action::\"inferr\"`",
        ),
        ("permit(principal, action, resource in Modell::\"a\");", "p.cedar:1:39"),
        ("permit(principal, action, resource) when { context.skore > 3 };", "p.cedar:1:44"),
        ("permit(principal, action, resource) when { context.source.isLoopback() };", "p.cedar:1:44"),
        ("permit(principal, action, resource) when { context.score > \"3\" };", "p.cedar:1:"),
        ("permit(principal, action, resource) when { principal.getTag(\"x\") == \"y\" };", "p.cedar:1:"),
        ("permit(principal == ?principal, action, resource);", "p.cedar:1: templates"),
        ("\n\n@rond(\"3\")\npermit(principal, action, resource);", "p.cedar:3: annotation `@rond` is unknown"),
        ("@round(\"3\")\nforbid(principal, action, resource);", "p.cedar:1: terms of a `forbid`"),
        (
            "@id(\"a\")permit(principal,action,resource);\n@id(\"a\")permit(principal,action,resource);",
            "p.cedar:2: id `a` is used twice, first at p.cedar:1",
        ),
    ];
    let wrong: Vec<String> = rows
        .into_iter()
        .map(|(text, place)| (complaint(text, ""), place))
        .filter(|(message, place)| !message.starts_with(place))
        .map(|(message, place)| format!("expected {place}…, got `{message}`"))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What is deeper than a stack aborts the process; what is as deep as may be is read, checked, decided and dropped.
#[test]
fn deep_policies_are_refused_before_they_are_parsed() {
    let nested = |depth: usize, open: &str, close: &str| {
        let (open, close) = (open.repeat(depth), close.repeat(depth));
        format!("permit(principal, action, resource) when {{ {open}true{close} }};")
    };
    let chain = |count: usize, operator: &str| {
        let terms = vec!["(context.hour < 25)"; count].join(operator);
        format!("permit(principal, action, resource) when {{ {terms} }};")
    };
    let sum = |count: usize| {
        let terms = vec!["1"; count].join(" + ");
        format!("permit(principal, action, resource) when {{ {terms} > 0 }};")
    };
    let condition = |depth| nested(depth, "if true then ", " else false");
    for text in [nested(1000, "(", ")"), nested(100_000, "[", "]"), condition(5000)] {
        assert!(complaint(&text, "").starts_with("p.cedar:1: brackets and conditions are nested"), "{}", text.len());
    }
    for text in [
        chain(5000, " && "),
        chain(5000, " || "),
        sum(5000),
        format!("permit(principal, action, resource) when {{ context{} }};", ".a".repeat(5000)),
    ] {
        assert!(complaint(&text, "").starts_with("p.cedar:1: a policy with "), "{}", text.len());
    }
    // Another file, and a statement behind a broken one, are looked at as well.
    let broken = format!("permit(;\n{}", nested(100_000, "(", ")"));
    assert!(complaint(&broken, "").starts_with("p.cedar:2: brackets"), "{}", complaint(&broken, ""));
    for text in [
        nested(61, "(", ")"),
        condition(15),
        chain(60, " && "),
        chain(60, " || "),
        sum(24),
        chain(330, " && "),
        chain(330, " || "),
        sum(125),
    ] {
        let sources = Sources { policies: vec![SourceFile { name: "p.cedar".to_owned(), text }], entities: Vec::new() };
        let rules = Rules::compile(&sources, 1).unwrap();
        let resource = "Endpoint::live".parse().unwrap();
        // As threads of a server have it.
        let shown = format!("{}…", &sources.policies[0].text[..80]);
        let decide = move || {
            let decision =
                rules.decide(&Request { principal: &anna(), action: Action::Get, resource: &resource }, &observed());
            assert_eq!(decision.errors, [""; 0], "{shown}");
            decision.allowed()
        };
        assert!(std::thread::Builder::new().stack_size(2 << 20).spawn(decide).unwrap().join().unwrap());
    }
}

#[test]
fn entities_are_refused_by_place() {
    let rows = [
        ("[Model", "e.toml:1:"),
        ("[Modell.a]", "e.toml:1:2: kind `Modell` is unknown"),
        ("[Action.a]", "e.toml:1:2: kind `Action` is unknown"),
        ("Model = 3", "e.toml:1:1: `Model` holds no entities"),
        ("[Model]\na = 3", "e.toml:2:1: `a` is no entity"),
        ("[Model.a]\nin = \"Segment::b\"", "e.toml:2:6: `Model::a` is in `Segment::b`, which is listed nowhere"),
        ("[Model.a]\nin = [\"b\"]", "e.toml:2:7: `b` is no entity"),
        ("[Model.a]\nin = [3]", "e.toml:2:7: `in` is wrong"),
        ("[Model.a]\nsize = 3", "e.toml:2:8: label `size` is wrong"),
        ("[Model.a]\nany_version = \"yes\"", "e.toml:2:15: `any_version` is wrong"),
        ("[User.a]\n\"claim.x\" = \"y\"", "e.toml:2:1: label `claim.x` is wrong"),
        ("[Site.s]\n[Key.k]\nin = \"Site::s\"", "e.toml:2:6: "),
        ("[ModelVersion.a]", "e.toml:1:15: `ModelVersion::a` is no version of a listed model"),
        ("[ModelVersion.\"a/1\"]", "e.toml:1:15: `ModelVersion::a/1` is no version of a listed model"),
        (
            "[Tenant.t]\n[Segment.s]\nin = \"Tenant::t\"",
            "e.toml:2:10: `Segment::s` must be in exactly one `ModelGroup`",
        ),
        (
            "[Group.a]\nin = \"Group::b\"\n[Group.b]\nin = \"Group::a\"",
            "e.toml:1:8: `Group::a` is in itself: `Group::a` in `Group::b` in `Group::a`; take",
        ),
        ("[Group.a]\nin = \"Group::a\"", "e.toml:1:8: `Group::a` is in itself: `Group::a` in `Group::a`; take"),
    ];
    let wrong: Vec<String> = rows
        .into_iter()
        .map(|(text, place)| (complaint("permit(principal, action, resource);", text), place))
        .filter(|(message, place)| !message.starts_with(place))
        .map(|(message, place)| format!("expected {place}…, got `{message}`"))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_is_hardly_meant_is_said() {
    let rules = Rules::compile(
        &sources(
            "permit(principal in Group::\"radiologist\", action, resource);\n\
             permit(principal, action == Action::\"get\", resource == Model::\"chest\");\n\
             permit(principal in Group::\"https://x#y\", action, resource);",
        ),
        1,
    )
    .unwrap();
    let warnings = rules.warnings().join("\n");
    assert!(warnings.contains("p.cedar:1: `Group::radiologist` is listed nowhere"), "{warnings}");
    assert!(warnings.contains("p.cedar:2:"), "{warnings}");
    assert!(!warnings.contains("p.cedar:3:"), "{warnings}");
}

#[test]
fn a_folder_is_read_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &[u8]| std::fs::write(folder.path().join(name), text).unwrap();
    let read = || Sources::read(folder.path());
    assert!(read().unwrap_err().to_string().contains("has no policies"));
    write("b.cedar", b"permit(principal, action, resource);");
    write("a.cedar", b"");
    write("x.entities.toml", b"");
    write("tests.toml", b"not read");
    write("README.md", b"\xff");
    write(".hidden.toml", b"\xff");
    let sources = read().unwrap();
    assert_eq!(sources.policies.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), ["a.cedar", "b.cedar"]);
    assert_eq!(sources.entities.len(), 1);
    let digest = sources.digest();
    write("a.cedar", b" ");
    assert_ne!(read().unwrap().digest(), digest);
    write("c.cedar", b"// one\n\xff");
    assert!(read().unwrap_err().to_string().starts_with("c.cedar:2: the file is no UTF-8 text"));
    std::fs::remove_file(folder.path().join("c.cedar")).unwrap();
    write("entity.toml", b"");
    assert!(read().unwrap_err().to_string().contains("`entity.toml`"));
}
