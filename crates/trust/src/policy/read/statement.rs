//! Where each policy of a text begins and ends, without parsing it: at a `;` that stands in no string and no comment.

/// The text of one policy.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Statement<'a> {
    pub(super) text: &'a str,
    /// Where it begins, in bytes.
    pub(super) offset: usize,
    /// From 1.
    pub(super) line: usize,
    /// How deep its brackets are nested, with each `if` as four more: Cedar needs exponential time for those.
    pub(super) nested: usize,
    /// Letters of operators that can follow each other without end.
    pub(super) operators: usize,
}

/// What makes a statement deep: Cedar reads, checks and evaluates by recursion, and aborts the process where its stack ends.
#[derive(Default)]
struct Depth {
    open: usize,
    most: usize,
    conditions: usize,
    operators: usize,
    /// The letter before was one of a name.
    in_name: bool,
}

impl Depth {
    /// Sees a letter that stands in no string and no comment, with what follows it.
    fn see(&mut self, letter: char, rest: &str) {
        let name = |letter: char| letter.is_alphanumeric() || letter == '_';
        match letter {
            '(' | '[' | '{' => self.open += 1,
            ')' | ']' | '}' => self.open = self.open.saturating_sub(1),
            '&' | '|' | '.' | '!' => self.operators += 1,
            // Cedar's evaluator needs most of a stack for these, and does not look how much is left.
            '+' | '-' | '*' => self.operators += 8,
            'i' if !self.in_name => {
                let condition = rest.strip_prefix("if").is_some_and(|after| !after.starts_with(name));
                self.conditions += usize::from(condition);
            }
            _ => {}
        }
        self.most = self.most.max(self.open);
        self.in_name = name(letter);
    }

    fn statement<'a>(&self, text: &'a str, offset: usize, line: usize) -> Statement<'a> {
        Statement { text, offset, line, nested: self.most + 4 * self.conditions, operators: self.operators }
    }
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
    let (mut within, mut line, mut depth) = (Within::Code, 1, Depth::default());
    let mut letters = text.char_indices().peekable();
    while let Some((place, letter)) = letters.next() {
        within = match (within, letter) {
            (Within::Code, '/') if letters.peek().is_some_and(|(_, next)| *next == '/') => Within::Comment,
            (Within::Code, _) if letter.is_whitespace() => {
                depth.in_name = false;
                Within::Code
            }
            (Within::Code, _) => {
                let (offset, line) = *begun.get_or_insert((place, line));
                depth.see(letter, text.get(place..).unwrap_or_default());
                if letter == ';' {
                    found.extend(text.get(offset..=place).map(|text| depth.statement(text, offset, line)));
                    (begun, depth) = (None, Depth::default());
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
        found.extend(text.get(offset..).map(|text| depth.statement(text, offset, line)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_is_seen_in_code_alone() {
        let rows: [(&str, (usize, usize)); 6] = [
            ("a (b [c] {d});", (2, 0)),
            ("a \"((((\" // ((((\n (b);", (1, 0)),
            ("if a then if b then c else d else e;", (8, 0)),
            ("gif iff if_ elif xif;", (0, 0)),
            ("(if(a));", (6, 0)),
            ("a && b || c.d - 1;", (0, 13)),
        ];
        for (text, expected) in rows {
            let found: Vec<_> =
                statements(text).iter().map(|statement| (statement.nested, statement.operators)).collect();
            assert_eq!(found, [expected], "{text}");
        }
    }

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
