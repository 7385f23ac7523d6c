//! Examples taken out of documents, so that tests run what readers paste.

#![allow(dead_code, reason = "each test file uses a part of it")]

/// A block of code: its language (empty for an indented block) and its text.
#[derive(Debug, PartialEq, Eq)]
pub struct Block {
    pub language: String,
    pub text: String,
}

/// What stands under the heading `## title`, up to the next of that level.
pub fn section<'a>(document: &'a str, title: &str) -> &'a str {
    let heading = format!("\n## {title}\n");
    let start = document.find(&heading).unwrap_or_else(|| panic!("no section `{title}`")) + heading.len();
    let rest = &document[start..];
    rest.find("\n## ").map_or(rest, |end| &rest[..end])
}

/// Fenced and indented blocks, in order.
pub fn blocks(text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut fence: Option<Block> = None;
    let mut indented = false;
    for line in text.lines() {
        if let Some(language) = line.strip_prefix("```") {
            match fence.take() {
                Some(block) => blocks.push(block),
                None => fence = Some(Block { language: language.to_owned(), text: String::new() }),
            }
        } else if let Some(block) = &mut fence {
            block.text += line;
            block.text.push('\n');
        } else if let Some(code) = line.strip_prefix("    ") {
            if !indented {
                blocks.push(Block { language: String::new(), text: String::new() });
            }
            if let Some(block) = blocks.last_mut() {
                block.text += code;
                block.text.push('\n');
            }
            indented = true;
            continue;
        }
        indented = false;
    }
    assert!(fence.is_none(), "a fence is not closed");
    blocks
}

/// Command lines of shell blocks, without what follows a `#`; a line that ends in `\` goes on in the next.
pub fn commands(text: &str) -> Vec<String> {
    let shell = |block: &Block| matches!(block.language.as_str(), "" | "sh" | "bash" | "console");
    let joined = |block: &Block| block.text.replace("\\\n", " ");
    let lines: Vec<String> = blocks(text).iter().filter(|b| shell(b)).map(joined).collect();
    let lines = lines.iter().flat_map(|text| text.lines());
    let bare = |line: &str| line.split(" #").next().unwrap_or_default().trim().to_owned();
    lines.map(bare).filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}
