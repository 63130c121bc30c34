//! Counters that the kernel side keeps per CPU: loss is data.

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $variant:ident => $name:literal,)+) => {
        /// One per-CPU counter. The discriminant is its index in the map.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter { $($(#[doc = $doc])* $variant,)+ }

        impl Counter {
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Stable name, as `summary.lost_where` shows it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

counters! {
    /// Records handed to the ring buffer.
    Emitted => "emitted",
    /// Records that found the ring buffer full.
    RingFull => "ring-full",
    /// Sights of matching packets that were not followed because the ring buffer was more than half full: what is
    /// followed is to be whole.
    RingBusy => "ring-busy",
    /// Matching packets that found no room in the table of followed packets.
    TrackedFull => "tracked-full",
    /// Connections that found no room in the table of followed connections.
    FlowsFull => "flows-full",
    /// Kernel memory that could not be read.
    ReadFailed => "read-failed",
    /// Rule readings that another packet on the same CPU overwrote.
    SnapshotLost => "snapshot-lost",
}

impl Counter {
    /// Whether a count above 0 means that events were lost.
    #[must_use]
    pub fn is_loss(self) -> bool {
        !matches!(self, Self::Emitted | Self::ReadFailed | Self::SnapshotLost)
    }
}

/// Entries of the counter map.
pub const COUNTERS: u32 = Counter::ALL.len() as u32;
