//! Text for people.

mod details;
mod journey;
mod outcome;
mod page;
mod repeats;
mod rows;
mod summary;
mod walk;
mod words;

use std::io::{self, Write};

use jiff::tz::TimeZone;

use self::{
    journey::View,
    page::{Ink, Look, Page},
    repeats::Memory,
};
use super::Render;
use crate::{
    model::{Journey, Line, Notice, NoticeLevel, Start},
    netns::NetnsNames,
};

/// How text is written.
#[derive(Clone, Debug)]
pub struct TextOptions {
    /// Every journey in full, also repeats.
    pub every: bool,
    /// Every rule, backends, priorities, times.
    pub verbose: bool,
    /// More than one namespace is traced: each journey says where it is.
    pub several_netns: bool,
    pub color: bool,
    /// The terminal shows box-drawing characters.
    pub unicode: bool,
    /// In which times are shown.
    pub time_zone: TimeZone,
}

/// Prints journeys and the summary to one writer, status and warnings to another.
#[derive(Debug)]
pub struct Text<O, S> {
    options: TextOptions,
    names: NetnsNames,
    memory: Memory,
    out: O,
    status: S,
}

impl<O: Write, S: Write> Text<O, S> {
    pub fn new(options: TextOptions, out: O, status: S) -> Self {
        Self { options, names: NetnsNames::default(), memory: Memory::default(), out, status }
    }

    fn page(&self) -> Page {
        Page::new(Look { color: self.options.color, unicode: self.options.unicode })
    }

    fn view(&self) -> View<'_> {
        View {
            verbose: self.options.verbose,
            several_netns: self.options.several_netns,
            names: &self.names,
            time_zone: &self.options.time_zone,
        }
    }

    fn journey(&mut self, journey: &Journey) -> io::Result<()> {
        if !self.options.every && !self.memory.is_new(journey) {
            return Ok(());
        }
        self.say_repeats()?;
        let mut page = self.page();
        self.view().journey(&mut page, journey);
        write(&mut self.out, &page)
    }

    fn say_repeats(&mut self) -> io::Result<()> {
        let repeats = self.memory.take();
        if repeats.is_empty() {
            return Ok(());
        }
        let mut page = self.page();
        self.view().repeats(&mut page, &repeats);
        write(&mut self.out, &page)
    }

    fn start(&mut self, start: &Start) -> io::Result<()> {
        let mut page = self.page();
        let netns: Vec<String> = start.netns.iter().map(|inode| self.names.label(*inode)).collect();
        page.put(format_args!("pathtrace {} on Linux {}: ", start.version, start.kernel));
        page.put(format_args!("tracing netns {}, ", netns.join(", ")));
        page.put(format_args!("ready after {} ms. Ctrl-C ends it with a summary.", start.ready_ms))
            .end_line();
        if self.options.verbose {
            page.put(format_args!("probes: {}", start.probes.join(", "))).end_line();
        }
        for missing in &start.missing {
            page.put(format_args!("not shown: {missing}")).end_line();
        }
        page.end_line();
        write(&mut self.status, &page)
    }

    fn notice(&mut self, notice: &Notice) -> io::Result<()> {
        let mut page = self.page();
        let (word, ink) = match notice.level {
            NoticeLevel::Info => ("note", Ink::Plain),
            NoticeLevel::Warning => ("warning", Ink::Doubt),
        };
        page.put("pathtrace: ").ink(ink, word).put(format_args!(": {}", notice.message)).end_line();
        write(&mut self.status, &page)
    }
}

impl<O: Write, S: Write> Render for Text<O, S> {
    fn line(&mut self, line: &Line) -> io::Result<()> {
        match line {
            Line::Start(start) => self.start(start),
            Line::Journey(journey) => self.journey(journey),
            Line::Notice(notice) => self.notice(notice),
            Line::Summary(account) => {
                self.say_repeats()?;
                let mut page = self.page();
                summary::summary(&mut page, account);
                write(&mut self.out, &page)
            }
        }
    }

    fn idle(&mut self) -> io::Result<()> {
        self.say_repeats()
    }

    fn name_netns(&mut self, inode: u32, name: &str) {
        self.names.insert(inode, name.to_owned());
    }
}

fn write(to: &mut impl Write, page: &Page) -> io::Result<()> {
    to.write_all(page.as_bytes())?;
    to.flush()
}
