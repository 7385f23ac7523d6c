//! Numbers as JSON writes them, read eight digits at a time.
//!
//! Most numbers have few digits and a small exponent: for these one exact division gives the nearest value (Clinger, "How
//! to Read Floating Point Numbers Accurately", 1990). All others go to a library.

/// A number's parts: `±digits × 10^exponent`.
#[derive(Clone, Copy)]
pub(super) struct Number {
    negative: bool,
    digits: u64,
    exponent: i64,
    /// Whether the digits that stood there fit into `digits`.
    exact: bool,
    integer: bool,
    /// Length of the text in bytes.
    pub length: usize,
}

/// Powers of ten that a double holds exactly.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];
/// Ten to the number of digits that a word of eight bytes may hold.
const SCALES: [u64; 9] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000];
/// More digits than this may not fit into 64 bits.
const DIGITS_MAX: usize = 19;

/// The number at the beginning of a text; none where JSON's grammar (RFC 8259, section 6) has none.
#[inline(always)]
pub(super) fn number(text: &[u8]) -> Option<Number> {
    let negative = text.first() == Some(&b'-');
    let mut at = usize::from(negative);
    let mut sum = Digits::default();
    let whole = sum.whole(text, at)?;
    at += whole;
    let (mut exponent, mut integer) = (0i64, true);
    if text.get(at) == Some(&b'.') {
        let fraction = sum.take(text, at + 1);
        if fraction == 0 {
            return None;
        }
        at += 1 + fraction;
        exponent = -(fraction as i64);
        integer = false;
    }
    if let Some(b'e' | b'E') = text.get(at) {
        let (written, length) = power(text.get(at + 1..)?)?;
        exponent += written;
        at += 1 + length;
        integer = false;
    }
    Some(Number { negative, digits: sum.value, exponent, exact: sum.count <= DIGITS_MAX, integer, length: at })
}

/// The exponent behind an `e`, bounded, and its length.
fn power(text: &[u8]) -> Option<(i64, usize)> {
    let signed = usize::from(matches!(text.first(), Some(b'-' | b'+')));
    let digits = text.get(signed..)?.iter().take_while(|b| b.is_ascii_digit());
    let (value, length) = digits.fold((0i64, 0), |(v, n), b| ((v * 10 + i64::from(b - b'0')).min(100_000), n + 1));
    let value = if text.first() == Some(&b'-') { -value } else { value };
    (length > 0).then_some((value, signed + length))
}

/// Digits read so far.
#[derive(Default)]
struct Digits {
    value: u64,
    /// Without zeros at the front.
    count: usize,
}

impl Digits {
    /// Reads digits from `at` on; how many there were.
    #[inline(always)]
    fn take(&mut self, text: &[u8], at: usize) -> usize {
        let mut length = 0;
        while let Some(word) = text.get(at + length..).and_then(|rest| rest.first_chunk::<8>()) {
            let (value, digits) = word_of_digits(u64::from_le_bytes(*word));
            self.add(value, digits);
            length += digits;
            if digits < 8 {
                return length;
            }
        }
        while let Some(digit) = text.get(at + length).filter(|b| b.is_ascii_digit()) {
            self.add(u64::from(digit - b'0'), 1);
            length += 1;
        }
        length
    }

    #[inline(always)]
    fn whole(&mut self, text: &[u8], at: usize) -> Option<usize> {
        let first = text.get(at)?.wrapping_sub(b'0');
        let more = text.get(at + 1).is_some_and(u8::is_ascii_digit);
        if first > 9 || (first == 0 && more) {
            return None;
        }
        if more {
            return Some(self.take(text, at));
        }
        (self.value, self.count) = (u64::from(first), usize::from(first > 0));
        Some(1)
    }

    #[inline(always)]
    fn add(&mut self, value: u64, digits: usize) {
        // What overflows is not exact and never looked at.
        self.value = self.value.wrapping_mul(SCALES.get(digits).copied().unwrap_or(1)).wrapping_add(value);
        if self.count > 0 || value > 0 {
            self.count += digits;
        }
    }
}

/// How many of eight characters are digits before the first that is none, and their value.
#[inline(always)]
fn word_of_digits(word: u64) -> (u64, usize) {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let value = word ^ (0x30 * ONES);
    // The high bit of each byte that is above nine.
    let others = (value | (value & (0x7f * ONES)).wrapping_add(0x76 * ONES)) & (0x80 * ONES);
    let digits = (others.trailing_zeros() / 8) as usize;
    if digits == 0 {
        return (0, 0);
    }
    // Zeros before the digits make them eight; then pairs, fours and eights are joined.
    let value = value << (64 - 8 * digits);
    let value = value.wrapping_mul(10).wrapping_add(value >> 8) & 0x00ff_00ff_00ff_00ff;
    let value = value.wrapping_mul(100).wrapping_add(value >> 16) & 0x0000_ffff_0000_ffff;
    let value = value.wrapping_mul(10_000).wrapping_add(value >> 32) & 0xffff_ffff;
    (value, digits)
}

impl Number {
    /// The integer; none where it is written with a fraction or an exponent. `text` begins with the number.
    pub fn integer(self, text: &[u8]) -> Option<i128> {
        if !self.integer {
            return None;
        }
        if !self.exact {
            return std::str::from_utf8(text.get(..self.length)?).ok()?.parse().ok();
        }
        let value = i128::from(self.digits);
        Some(if self.negative { -value } else { value })
    }

    /// The nearest double where one division or multiplication gives it.
    #[inline(always)]
    fn simple(self) -> Option<f64> {
        if !self.exact || self.digits > 1 << 53 {
            return None;
        }
        let power = POWERS.get(usize::try_from(self.exponent.unsigned_abs()).ok()?)?;
        let digits = self.digits as f64;
        let value = if self.exponent < 0 { digits / power } else { digits * power };
        Some(if self.negative { -value } else { value })
    }

    /// The nearest double; none where there is none that is finite. `text` begins with the number.
    pub fn double(self, text: &[u8]) -> Option<f64> {
        let slow = || fast_float2::parse(text.get(..self.length)?).ok();
        self.simple().or_else(slow).filter(|v: &f64| v.is_finite())
    }

    /// The nearest single; none where there is none that is finite. `text` begins with the number.
    #[inline(always)]
    pub fn single(self, text: &[u8]) -> Option<f32> {
        /// Bits of a double's fraction that a single has not.
        const BELOW: u64 = (1 << 29) - 1;
        // Rounding twice errs only where the double lies halfway between two singles, or where singles are subnormal.
        let value = self.simple().filter(|v| {
            let halfway = v.to_bits() & BELOW == 1 << 28;
            !halfway && (*v == 0.0 || v.abs() >= f64::from(f32::MIN_POSITIVE))
        });
        let slow = || fast_float2::parse(text.get(..self.length)?).ok();
        value.map(|v| v as f32).or_else(slow).filter(|v: &f32| v.is_finite())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str) {
        let read = number(text.as_bytes());
        let is_json = serde_json::from_str::<serde_json::Value>(text).is_ok();
        // serde_json refuses what is too large for a double, which is not a matter of grammar.
        assert!(read.is_some_and(|n| n.length == text.len()) || !is_json, "`{text}` is JSON");
        let Some(read) = read.filter(|n| n.length == text.len()) else { return };
        let (double, single) = (text.parse::<f64>().unwrap(), text.parse::<f32>().unwrap());
        let bytes = text.as_bytes();
        assert_eq!(
            read.double(bytes).map(f64::to_bits),
            Some(double).filter(|v| v.is_finite()).map(f64::to_bits),
            "{text}"
        );
        assert_eq!(
            read.single(bytes).map(f32::to_bits),
            Some(single).filter(|v| v.is_finite()).map(f32::to_bits),
            "{text}"
        );
        if let Some(integer) = read.integer(bytes) {
            assert_eq!(Ok(integer), text.parse(), "{text}");
        }
    }

    #[test]
    fn odd_numbers() {
        let long = format!("0.{}1", "0".repeat(400));
        for text in [
            "0",
            "-0",
            "-0.0",
            "1",
            "10",
            "12345678",
            "123456789012345678",
            "18446744073709551615",
            "9223372036854775808",
            "99999999999999999999",
            "0.1",
            "1.5e10",
            "1E+5",
            "1e-5",
            "1e400",
            "-1e400",
            "1e-400",
            "3.4028235e38",
            "3.4028236e38",
            "1.17549435e-38",
            "1e-45",
            "16777217",
            "16777217.0",
            "0.500000029802322387695312500000001",
            "1.00000017881393432617187499",
            "1.00000017881393421514957253748434595763683319091796875001",
            "9007199254740993",
            "2.2250738585072011e-308",
            &long,
            "1e99999999999999999999",
            "0e99999999999999999999",
        ] {
            check(text);
        }
        for text in [
            "", "-", "+1", "01", "-01", ".5", "1.", "1.e5", "1e", "1e+", "inf", "nan", "NaN", "Infinity", "0x10", "--1",
        ] {
            assert!(number(text.as_bytes()).is_none_or(|n| n.length < text.len()), "`{text}`");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn as_the_standard_library_reads_them(text in "-?(0|[1-9][0-9]{0,21})(\\.[0-9]{1,24})?([eE][+-]?[0-9]{1,3})?") {
            check(&text);
        }

        #[test]
        fn every_single_comes_back(bits: u32) {
            let value = f32::from_bits(bits);
            prop_assume!(value.is_finite());
            check(&format!("{value}"));
            check(&format!("{value:.6}"));
        }

        #[test]
        fn anything_else(text in "[-+.0-9eE]{0,24}") {
            let read = number(text.as_bytes());
            let whole = read.filter(|n| n.length == text.len());
            let is_json = serde_json::from_str::<&serde_json::value::RawValue>(&text).is_ok();
            prop_assert_eq!(whole.is_some(), is_json, "{}", text);
        }
    }
}
