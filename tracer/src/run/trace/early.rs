//! Packets that came while probes were still being placed.

use std::collections::HashMap;

use crate::{
    correlate::{Forget, Output},
    decode::Event,
};

/// Journeys that began before everything stood: not all of their way was seen, and they came before what the trace
/// says of its start. They are not shown, and the kernel side is to follow them no further: of one that nobody sees end
/// the next packet in the same `sk_buff` would be taken for a part.
pub(super) struct Early {
    ready: u64,
    /// With the `sk_buff` that each was in last.
    journeys: HashMap<u64, u64>,
}

impl Early {
    /// All that begin before this time (nanoseconds of CLOCK_MONOTONIC).
    pub(super) fn before(ready: u64) -> Self {
        Self { ready, journeys: HashMap::new() }
    }

    /// Whether a record belongs to one.
    pub(super) fn has(&mut self, event: &Event, output: &mut Output) -> bool {
        let journey = event.journey();
        let Event::Sight(sight) = event else { return self.journeys.contains_key(&journey) };
        if sight.raw.head.time >= self.ready && !self.journeys.contains_key(&journey) {
            return false;
        }
        let skb = sight.raw.skb;
        if self.journeys.insert(journey, skb) != Some(skb) && skb != 0 {
            output.forget.push(Forget { skb, journey });
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use tracer_common::records::{Head, Sight};

    use super::Early;
    use crate::{
        correlate::{Forget, Output},
        decode::{Event, SightEvent, SightKind},
        model::{Family, Protocol},
    };

    fn seen(journey: u64, time: u64) -> Event {
        let head = Head { journey, time, ..Head::default() };
        let raw = Sight { head, skb: 7, ..Sight::default() };
        let (protocol, family) = (Protocol::TCP, Family::Ipv4);
        Event::Sight(SightEvent { kind: SightKind::DeviceIn, tuple: None, protocol, family, raw })
    }

    #[test]
    fn a_journey_is_early_from_its_first_record_to_its_last() {
        let (mut early, mut output) = (Early::before(100), Output::default());
        assert!(early.has(&seen(1, 99), &mut output) && early.has(&seen(1, 101), &mut output));
        assert!(!early.has(&seen(2, 100), &mut output));
        assert_eq!(output.forget, [Forget { skb: 7, journey: 1 }]);
    }
}
