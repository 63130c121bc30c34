//! One journey on the page: a header, the way along a rail, the end, the findings.

use std::collections::BTreeMap;

use jiff::{Timestamp, tz::TimeZone};

use crate::{
    model::{Conntrack, DeviceDirection, Journey, OutcomeKind},
    netns::NetnsNames,
};

use super::{
    details::Detail,
    outcome,
    page::{Ink, Page, Rail},
    repeats::Repeats,
    rows::{self, Body, Row},
    words::{self, WIDTH},
};

/// What the page is drawn with.
pub(super) struct View<'a> {
    pub(super) verbose: bool,
    /// Name the namespace of every journey, also of one that stays in one.
    pub(super) several_netns: bool,
    pub(super) names: &'a NetnsNames,
    pub(super) time_zone: &'a TimeZone,
}

/// Columns of the rail.
const RAIL: usize = 2;
/// Columns of the time, when it is shown.
const ELAPSED: usize = 10;
/// Columns of the label (`POSTROUTING`).
const LABEL: usize = 13;
/// Columns of the verdict (`~MASQUERADE`).
const VERDICT: usize = 13;
/// Columns between the label and the details under a row.
const DETAIL_INDENT: usize = 2;
/// What stands before counted packets.
const REPEATS: &str = "  + ";

impl View<'_> {
    pub(super) fn journey(&self, page: &mut Page, journey: &Journey) {
        self.header(page, journey);
        self.way(page, journey);
        for note in &journey.notes {
            page.rail(Rail::Along).ink(Ink::Doubt, format_args!("note: {note}")).end_line();
        }
        if let Some(conntrack) = journey.conntrack.as_ref().filter(|_| self.verbose) {
            self.indent(page, 0);
            page.put(format_args!("{:LABEL$}{}", "conntrack", conntrack_words(conntrack))).end_line();
        }
        outcome::end(page, journey);
        for finding in &journey.findings {
            outcome::finding(page, finding);
        }
        page.end_line();
    }

    fn header(&self, page: &mut Page, journey: &Journey) {
        let packet = &journey.packet;
        let mut words = outcome::particulars(packet, self.verbose);
        words.extend(journey.flow.map(|flow| format!("flow {flow}")));
        words.extend(journey.direction.and_then(words::direction).map(str::to_owned));
        words.extend(journey.conntrack.as_ref().map(|conntrack| conntrack.state.name().to_owned()));
        let (source, destination) = (packet.tuple.source_text(), packet.tuple.destination_text());
        page.put(self.time(journey.time))
            .ink(Ink::Faint, format_args!("  #{}  ", journey.id))
            .ink(Ink::Strong, format_args!("{} {source} -> {destination}", packet.protocol))
            .put(format_args!("  {}", words.join(", ")))
            .end_line();
    }

    pub(super) fn time(&self, time: Timestamp) -> String {
        time.to_zoned(self.time_zone.clone()).strftime("%H:%M:%S.%6f").to_string()
    }

    fn way(&self, page: &mut Page, journey: &Journey) {
        let rows = rows::rows(journey, self.verbose);
        let name_netns = self.several_netns || rows.windows(2).any(|pair| pair[0].netns != pair[1].netns);
        let mut previous: Option<&Row> = None;
        for (index, row) in rows.iter().enumerate() {
            if name_netns && previous.is_none_or(|before| before.netns != row.netns) {
                let name = self.names.label(row.netns);
                page.rail(Rail::Branch).ink(Ink::Strong, format_args!("netns {name}")).end_line();
                previous = None;
            }
            let is_last = index + 1 == rows.len();
            if self.verbose || !is_last || !says_what_the_end_says(row, journey) {
                self.row(page, row, previous.is_some_and(|before| before.label == row.label));
            }
            previous = Some(row);
        }
    }

    fn row(&self, page: &mut Page, row: &Row, same_hook: bool) {
        page.rail(Rail::Along);
        if self.verbose {
            page.ink(Ink::Faint, format_args!("{:>1$}  ", words::elapsed(row.elapsed_ns), ELAPSED - 2));
        }
        page.put(format_args!("{:LABEL$}", if same_hook { "" } else { row.label }));
        match &row.body {
            Body::Devices { names, .. } => page.put(names.join(" -> ")).end_line(),
            Body::Route { text, failed } => {
                page.ink(if *failed { Ink::Bad } else { Ink::Plain }, text).end_line();
            }
            Body::Quiet { tables, doubt } => {
                let verdict = if doubt.is_some() { "~accept" } else { "accept" };
                self.judgement(page, (verdict, Ink::Faint), tables, ", ");
            }
            Body::Judged { verdict, ink, way } => self.judgement(page, (verdict, *ink), way, " -> "),
        }
        self.details(page, &row.details);
    }

    fn judgement(&self, page: &mut Page, (verdict, ink): (&str, Ink), parts: &[String], separator: &str) {
        let lines = words::fill(parts.iter().map(String::as_str), separator, self.room(LABEL + VERDICT));
        page.ink(ink, verdict).put(format_args!(
            "{:1$}",
            "",
            VERDICT.saturating_sub(verdict.chars().count()).max(1)
        ));
        let text = if ink == Ink::Faint { Ink::Faint } else { Ink::Plain };
        for (index, line) in lines.iter().enumerate() {
            if index > 0 {
                self.indent(page, LABEL + VERDICT);
            }
            page.ink(text, line).end_line();
        }
    }

    fn details(&self, page: &mut Page, details: &[Detail]) {
        let mut previous = "";
        for Detail { label, text, ink } in details {
            self.indent(page, LABEL + DETAIL_INDENT);
            page.ink(Ink::Faint, format_args!("{:6}", if *label == previous { "" } else { label }));
            page.ink(*ink, text).end_line();
            previous = label;
        }
    }

    fn indent(&self, page: &mut Page, columns: usize) {
        let columns = columns + if self.verbose { ELAPSED } else { 0 };
        page.rail(Rail::Along).put(format_args!("{:columns$}", ""));
    }

    /// Columns that are left after so many.
    fn room(&self, columns: usize) -> usize {
        WIDTH - RAIL - columns - if self.verbose { ELAPSED } else { 0 }
    }
}

fn says_what_the_end_says(row: &Row, journey: &Journey) -> bool {
    let outcome = &journey.outcome;
    match &row.body {
        Body::Devices { names, direction: DeviceDirection::Out } if row.details.is_empty() => {
            outcome.result == OutcomeKind::Forwarded
                && names.len() == 1
                && names.first() == outcome.device.as_ref()
        }
        _ => false,
    }
}

fn conntrack_words(conntrack: &Conntrack) -> String {
    let mut words = vec![conntrack.state.name().to_owned()];
    let tuples = [("original", conntrack.original), ("reply", conntrack.reply)];
    for (name, tuple) in tuples {
        words.extend(tuple.map(|t| format!("{name} {} -> {}", t.source_text(), t.destination_text())));
    }
    words.extend(conntrack.mark.map(|mark| format!("mark {mark:#x}")));
    words.extend(conntrack.zone.map(|zone| format!("zone {zone}")));
    words.join(", ")
}

impl View<'_> {
    /// Packets that went the way of one that was shown.
    pub(super) fn repeats(&self, page: &mut Page, repeats: &BTreeMap<u64, Repeats>) {
        let parts: Vec<String> = repeats.iter().map(|(id, like)| self.repeated(*id, like)).collect();
        for line in words::fill(parts.iter().map(String::as_str), "; ", WIDTH - REPEATS.len()) {
            page.ink(Ink::Faint, REPEATS).put(line).end_line();
        }
        page.end_line();
    }

    fn repeated(&self, id: u64, like: &Repeats) -> String {
        let flags: Vec<String> = like.tcp_flags.iter().map(|letters| words::tcp_flags(letters)).collect();
        let flags = if flags.is_empty() { String::new() } else { format!(" [{}]", flags.join(" ")) };
        format!("{} more like #{id}{flags} until {}", like.count, self.time(like.last))
    }
}
