//! What the user sees: text for people, JSON lines for programs. No lookups and no clock: what a renderer prints,
//! it was given.

mod environment;
mod json;
mod printable;
mod text;

use std::io;

pub use self::{
    environment::Environment,
    json::Json,
    printable::printable,
    text::{Text, TextOptions},
};
use crate::{
    config::{Format, Output},
    model::Line,
};

/// An output format.
pub trait Render {
    /// Prints one line of the account. A journey that repeats an earlier one may be counted instead.
    ///
    /// # Errors
    /// Of the writer; a closed pipe is `BrokenPipe`.
    fn line(&mut self, line: &Line) -> io::Result<()>;

    /// Says what was counted instead of printed. To be called when nothing has happened for a while.
    ///
    /// # Errors
    /// As [`Render::line`].
    fn idle(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Makes known what to call a namespace from now on.
    fn name_netns(&mut self, inode: u32, name: &str) {
        let _ = (inode, name);
    }
}

/// The renderer that the user asked for. Results go to `out`; status and warnings for people go to `status`.
pub fn renderer<'w>(
    output: &Output,
    environment: &Environment,
    several_netns: bool,
    out: impl io::Write + 'w,
    status: impl io::Write + 'w,
) -> Box<dyn Render + 'w> {
    match output.format {
        Format::Json => Box::new(Json::new(out)),
        Format::Text { every, verbose } => {
            let options = TextOptions {
                every,
                verbose,
                several_netns,
                color: environment.wants_color(output.color),
                unicode: environment.unicode,
                time_zone: environment.time_zone.clone(),
            };
            Box::new(Text::new(options, out, status))
        }
    }
}
