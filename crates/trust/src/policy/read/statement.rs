//! Where each policy of a text begins and ends, without parsing it: at a `;` that stands in no string and no comment.

/// The text of one policy.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Statement<'a> {
    pub(super) text: &'a str,
    /// Where it begins, in bytes.
    pub(super) offset: usize,
    /// From 1.
    pub(super) line: usize,
}

/// Where a reader of Cedar's tokens is.
enum Within {
    Code,
    Text,
    /// A backslash of a text was read.
    Escape,
    Comment,
}

/// Cuts a text into statements. What follows the last `;` is one as well, unless it is empty.
pub(super) fn statements(text: &str) -> Vec<Statement<'_>> {
    let mut found = Vec::new();
    let mut begun = None;
    let (mut within, mut line) = (Within::Code, 1);
    let mut letters = text.char_indices().peekable();
    while let Some((place, letter)) = letters.next() {
        within = match (within, letter) {
            (Within::Code, '/') if letters.peek().is_some_and(|(_, next)| *next == '/') => Within::Comment,
            (Within::Code, _) if letter.is_whitespace() => Within::Code,
            (Within::Code, _) => {
                let (offset, line) = *begun.get_or_insert((place, line));
                if letter == ';' {
                    found.extend(text.get(offset..=place).map(|text| Statement { text, offset, line }));
                    begun = None;
                }
                if letter == '"' { Within::Text } else { Within::Code }
            }
            (Within::Text, '"') => Within::Code,
            (Within::Text, '\\') => Within::Escape,
            (Within::Text | Within::Escape, _) => Within::Text,
            (Within::Comment, '\n' | '\r') => Within::Code,
            (Within::Comment, _) => Within::Comment,
        };
        line += usize::from(letter == '\n');
    }
    if let Some((offset, line)) = begun {
        found.extend(text.get(offset..).map(|text| Statement { text, offset, line }));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn semicolons_in_texts_and_comments_end_nothing() {
        let rows: [(&str, &[(&str, usize, usize)]); 6] = [
            ("", &[]),
            (" // a; \n\t", &[]),
            ("a; b;", &[("a;", 0, 1), ("b;", 3, 1)]),
            ("// c;\n@x(\";\\\";\") a // d \";\n b; e", &[("@x(\";\\\";\") a // d \";\n b;", 6, 2), ("e", 31, 3)]),
            ("ü;\r\n//\r a ;", &[("ü;", 0, 1), ("a ;", 9, 2)]),
            ("a \"\\\\\";b", &[("a \"\\\\\";", 0, 1), ("b", 7, 1)]),
        ];
        for (text, expected) in rows {
            let found = statements(text);
            let found: Vec<_> = found.iter().map(|found| (found.text, found.offset, found.line)).collect();
            assert_eq!(found, expected, "{text:?}");
        }
    }
}
