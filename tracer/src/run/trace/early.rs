//! Packets that came while probes were still being placed.

use std::collections::HashSet;

use crate::decode::Event;

/// Journeys that began before everything stood: not all of their way was seen, and they came before what the trace
/// says of its start. They are followed to their ends, and not shown.
pub(super) struct Early {
    ready: u64,
    journeys: HashSet<u64>,
}

impl Early {
    /// All that begin before this time (nanoseconds of CLOCK_MONOTONIC).
    pub(super) fn before(ready: u64) -> Self {
        Self { ready, journeys: HashSet::new() }
    }

    /// Whether a record belongs to one.
    pub(super) fn has(&mut self, event: &Event) -> bool {
        match event {
            Event::Sight(sight) if sight.raw.head.time < self.ready => {
                self.journeys.insert(sight.raw.head.journey);
                true
            }
            _ => self.journeys.contains(&event.journey()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tracer_common::records::{Head, Sight};

    use super::Early;
    use crate::{
        decode::{Event, SightEvent, SightKind},
        model::{Family, Protocol},
    };

    fn seen(journey: u64, time: u64) -> Event {
        let head = Head { journey, time, ..Head::default() };
        let raw = Sight { head, ..Sight::default() };
        let (protocol, family) = (Protocol::TCP, Family::Ipv4);
        Event::Sight(SightEvent { kind: SightKind::DeviceIn, tuple: None, protocol, family, raw })
    }

    #[test]
    fn a_journey_is_early_from_its_first_record_to_its_last() {
        let mut early = Early::before(100);
        assert!(early.has(&seen(1, 99)) && early.has(&seen(1, 101)));
        assert!(!early.has(&seen(2, 100)));
    }
}
