//! Cuts long lists of numbers out of a request, so that the JSON parser sees only what is left.
//!
//! A general parser takes a step per number only to find where the list ends. Brackets are found many bytes at a time.

use std::borrow::Cow;

use memchr::memchr3;

/// Shorter lists are left where they are.
const CUT_BYTES_MIN: usize = 256;
/// `data` of an input stands within the request, its `inputs` and the input.
const DATA_DEPTH: usize = 3;
/// What stands in a list's place.
const PLACEHOLDER: &[u8] = b"[]";

/// A request without its long lists.
pub(super) struct Cut<'a> {
    /// What the JSON parser reads.
    pub rest: Cow<'a, [u8]>,
    /// The lists with their brackets, and where in the rest each of them stood. Nothing in them has been looked at,
    /// except that they hold no string.
    lists: Vec<(usize, &'a [u8])>,
}

/// Cuts the lists out. Text that is no JSON is left as it is, for the parser to say what is wrong.
pub(super) fn cut(json: &[u8]) -> Cut<'_> {
    let (mut rest, mut lists, mut copied) = (Vec::new(), Vec::new(), 0);
    // The JSON before binary tensors, most often: too short to hold a list that is cut.
    if json.len() < CUT_BYTES_MIN {
        return Cut { rest: Cow::Borrowed(json), lists };
    }
    let mut walk = Walk { json, at: 0, depth: 0 };
    while let Some(start) = walk.next_data_list() {
        // A list of strings is walked through like all else.
        let Some(end) = list_end(json, start).filter(|end| end - start >= CUT_BYTES_MIN) else { continue };
        rest.extend_from_slice(json.get(copied..start).unwrap_or_default());
        lists.push((rest.len(), json.get(start..end).unwrap_or_default()));
        rest.extend_from_slice(PLACEHOLDER);
        (walk.at, copied) = (end, end);
    }
    if lists.is_empty() {
        return Cut { rest: Cow::Borrowed(json), lists };
    }
    rest.extend_from_slice(json.get(copied..).unwrap_or_default());
    Cut { rest: Cow::Owned(rest), lists }
}

impl Cut<'_> {
    /// The whole text of a value that the parser found in the rest.
    pub fn whole<'b>(&'b self, value: &'b str) -> &'b [u8] {
        let at = (value.as_ptr() as usize).wrapping_sub(self.rest.as_ptr() as usize);
        let list = self.lists.binary_search_by_key(&at, |(start, _)| *start).ok().and_then(|i| self.lists.get(i));
        list.map_or(value.as_bytes(), |(_, list)| list)
    }

    /// Whether the rest is not the text as it came.
    pub fn is_cut(&self) -> bool {
        !self.lists.is_empty()
    }
}

/// A walk over the tokens of JSON that knows how deep it is.
struct Walk<'a> {
    json: &'a [u8],
    at: usize,
    depth: usize,
}

impl Walk<'_> {
    /// Where the next list begins that is the `data` of an input.
    fn next_data_list(&mut self) -> Option<usize> {
        loop {
            match self.json.get(self.at)? {
                b'"' => {
                    let end = string_end(self.json, self.at)?;
                    let key = self.json.get(self.at..end)?;
                    self.at = end;
                    if key == b"\"data\"" && self.depth == DATA_DEPTH {
                        let colon = skip_space(self.json, end);
                        let value = skip_space(self.json, colon + 1);
                        if self.json.get(colon) == Some(&b':') && self.json.get(value) == Some(&b'[') {
                            return Some(value);
                        }
                    }
                }
                byte => {
                    match byte {
                        b'[' | b'{' => self.depth += 1,
                        b']' | b'}' => self.depth = self.depth.saturating_sub(1),
                        _ => {}
                    }
                    self.at += 1;
                }
            }
        }
    }
}

fn skip_space(json: &[u8], from: usize) -> usize {
    let rest = json.get(from..).unwrap_or_default();
    from + rest.iter().take_while(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r')).count()
}

/// Behind the quote that ends the string beginning at `start`.
fn string_end(json: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        match json.get(at)? {
            b'\\' => at += 2,
            b'"' => return Some(at + 1),
            _ => at += 1,
        }
    }
}

/// Behind the bracket that ends the list beginning at `start`; none where it has no end or holds a string.
fn list_end(json: &[u8], start: usize) -> Option<usize> {
    let (mut depth, mut at) = (0usize, start);
    loop {
        at += memchr3(b'[', b']', b'"', json.get(at..)?)?;
        match json.get(at)? {
            b'[' => depth += 1,
            b']' => depth -= 1,
            _ => return None,
        }
        at += 1;
        if depth == 0 {
            return Some(at);
        }
    }
}
