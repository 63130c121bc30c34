//! What comes from outside (device names, rule comments, process names) must not steer the terminal.

use std::fmt::{self, Write};

use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

/// Whether a character does something to a terminal, or to a reader, other than appear: control characters, line
/// separators, and the invisible ones that reorder or hide text (bidirectional overrides, zero-width characters).
pub(super) fn is_active(character: char) -> bool {
    if character.is_ascii() {
        return character.is_ascii_control();
    }
    matches!(
        character.general_category(),
        GeneralCategory::Control
            | GeneralCategory::Format
            | GeneralCategory::LineSeparator
            | GeneralCategory::ParagraphSeparator
    )
}

/// The text on one line with every active character written out (`\n`, `\u{1b}`).
#[must_use]
pub fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    // Writing to a String does not fail.
    let _ = Printable(&mut safe).write_str(text);
    safe
}

/// Lets only printable text through.
pub(super) struct Printable<'a>(pub(super) &'a mut String);

impl Write for Printable<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            if is_active(character) {
                self.0.extend(character.escape_default());
            } else {
                self.0.push(character);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn active_characters_are_written_out() {
        let cases = [
            ("\u{1b}[2J", "\\u{1b}[2J"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("\u{7f}\u{0}", "\\u{7f}\\u{0}"),
            ("safe\u{202e}gpj", "safe\\u{202e}gpj"),
            ("a\u{2028}b\u{200b}c\u{feff}", "a\\u{2028}b\\u{200b}c\\u{feff}"),
            ("\u{2066}x\u{2069}", "\\u{2066}x\\u{2069}"),
        ];
        for (text, expected) in cases {
            assert_eq!(printable(text), expected);
        }
    }

    #[test]
    fn ordinary_text_stays_as_it_is() {
        for text in ["-m comment --comment \"Zürich \\\"office\\\" 東京\"", "docker0", "│ └"] {
            assert_eq!(printable(text), text);
        }
    }

    #[test]
    fn nothing_active_passes_whatever_the_character() {
        let all: String = (0..=0x10_ffff_u32).filter_map(char::from_u32).collect();
        assert!(!printable(&all).chars().any(|c| c.is_control() || is_active(c)));
    }
}
