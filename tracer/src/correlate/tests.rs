//! Journeys from hand-built events.
