//! What the terminal can show, and what the user's environment says about it.

use std::{
    env,
    io::{self, IsTerminal},
};

use jiff::tz::TimeZone;

use crate::config::ColorChoice;

/// The surroundings of a renderer.
#[derive(Clone, Debug)]
pub struct Environment {
    /// Standard output is a terminal.
    pub terminal: bool,
    /// `NO_COLOR` is set and not empty (no-color.org), or `TERM` says that the terminal is dumb.
    pub no_color: bool,
    /// The locale's encoding is UTF-8.
    pub unicode: bool,
    /// In which times are shown to people.
    pub time_zone: TimeZone,
}

impl Environment {
    /// That of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        // The first of these that is set decides (POSIX, 8.2 Internationalization Variables).
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set);
        Self {
            terminal: io::stdout().is_terminal(),
            no_color: set("NO_COLOR").is_some() || set("TERM").is_some_and(|term| term == "dumb"),
            unicode: locale.is_some_and(|locale| is_utf8(&locale.to_string_lossy())),
            time_zone: TimeZone::system(),
        }
    }

    pub(super) fn wants_color(&self, choice: ColorChoice) -> bool {
        match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => self.terminal && !self.no_color,
        }
    }
}

fn is_utf8(locale: &str) -> bool {
    let locale = locale.to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_for_terminals_unless_asked_for() {
        let on = |terminal, no_color, choice| {
            Environment { terminal, no_color, unicode: true, time_zone: TimeZone::UTC }.wants_color(choice)
        };
        assert!(on(true, false, ColorChoice::Auto));
        assert!(!on(false, false, ColorChoice::Auto));
        assert!(!on(true, true, ColorChoice::Auto));
        assert!(on(false, true, ColorChoice::Always));
        assert!(!on(true, false, ColorChoice::Never));
    }

    #[test]
    fn encodings_in_the_spellings_of_locales() {
        assert!(is_utf8("en_US.UTF-8") && is_utf8("C.utf8"));
        assert!(!is_utf8("C") && !is_utf8("de_DE.ISO-8859-1"));
    }
}
