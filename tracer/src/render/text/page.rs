//! The one door through which text gets to the user: everything is made printable here, so that no caller can
//! forget it; styles are added around it.

use std::fmt::{Display, Write};

use anstyle::{AnsiColor, Style};

use super::super::printable::Printable;

/// What a piece of text means. Never told by colour alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ink {
    Plain,
    Strong,
    Faint,
    Good,
    Bad,
    Doubt,
    /// The user's own rule.
    Quote,
    /// An address that changed.
    Change,
}

/// How the page is drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) color: bool,
    pub(super) unicode: bool,
}

impl Look {
    fn style(self, ink: Ink) -> Style {
        let plain = Style::new();
        if !self.color {
            return plain;
        }
        match ink {
            Ink::Plain => plain,
            Ink::Strong => plain.bold(),
            Ink::Faint => plain.dimmed(),
            Ink::Good => AnsiColor::Green.on_default(),
            Ink::Bad => AnsiColor::Red.on_default().bold(),
            Ink::Doubt => AnsiColor::Yellow.on_default(),
            Ink::Quote => AnsiColor::Cyan.on_default(),
            Ink::Change => AnsiColor::Magenta.on_default(),
        }
    }
}

/// The line down the left side of a journey.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rail {
    Along,
    Branch,
    End,
}

impl Rail {
    fn glyph(self, unicode: bool) -> &'static str {
        match (self, unicode) {
            (Self::Along, true) => "│ ",
            (Self::Branch, true) => "├ ",
            (Self::End, true) => "└ ",
            (Self::Along, false) => "| ",
            (Self::Branch, false) => "+ ",
            (Self::End, false) => "` ",
        }
    }
}

/// Text under construction, written in one go.
#[derive(Debug)]
pub(super) struct Page {
    look: Look,
    text: String,
}

impl Page {
    pub(super) fn new(look: Look) -> Self {
        Self { look, text: String::new() }
    }

    pub(super) fn put(&mut self, text: impl Display) -> &mut Self {
        self.ink(Ink::Plain, text)
    }

    pub(super) fn ink(&mut self, ink: Ink, text: impl Display) -> &mut Self {
        let style = self.look.style(ink);
        // Writing to a String does not fail.
        let _ = write!(self.text, "{style}");
        let _ = write!(Printable(&mut self.text), "{text}");
        let _ = write!(self.text, "{style:#}");
        self
    }

    pub(super) fn rail(&mut self, rail: Rail) -> &mut Self {
        self.ink(Ink::Faint, rail.glyph(self.look.unicode))
    }

    pub(super) fn end_line(&mut self) {
        let length = self.text.trim_end_matches(' ').len();
        self.text.truncate(length);
        self.text.push('\n');
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.text.as_bytes()
    }
}
