//! Bytes from the ring buffer to events. Total: any bytes give an event or an error, never a panic.

mod event;
mod hits;
mod part;

pub use event::{
    AnswerEvent, DeviceName, Event, Fragment, RouteEvent, SightEvent, SightKind, SocketTaken, TuplesEvent,
    tuple,
};
pub use hits::{Hits, HitsEvent};
pub use part::{PartEvent, PartWhen};

use std::fmt;

use bytes::Buf;
use tracer_common::records::{
    Answer, ConntrackTuples, Head, Hit, Kind, MAX_HITS, RULE_HITS_HEAD, Route, RuleHits, RulePart, Sight,
    SocketEvent,
};

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Shorter or longer than a record of its kind.
    Length { kind: u32, length: usize },
    /// A kind that this version does not know.
    Kind(u32),
    /// A field has a value that means nothing.
    Value(&'static str),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { kind, length } => write!(f, "record of kind {kind} with {length} bytes"),
            Self::Kind(kind) => write!(f, "record of unknown kind {kind}"),
            Self::Value(field) => write!(f, "record with an impossible {field}"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// A record type: integers and arrays of integers only, so that any bytes of its size are one.
///
/// # Safety
/// `repr(C)`, no padding that is read, no type with invalid bit patterns.
unsafe trait Record: Copy {}
// SAFETY: see tracer_common::records; the same for each.
unsafe impl Record for Sight {}
// SAFETY: as above.
unsafe impl Record for ConntrackTuples {}
// SAFETY: as above.
unsafe impl Record for RuleHits {}
// SAFETY: as above.
unsafe impl Record for Route {}
// SAFETY: as above.
unsafe impl Record for Answer {}
// SAFETY: as above.
unsafe impl Record for SocketEvent {}
// SAFETY: as above.
unsafe impl Record for RulePart {}

fn record<T: Record>(kind: u32, bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() != size_of::<T>() {
        return Err(DecodeError::Length { kind, length: bytes.len() });
    }
    // SAFETY: as many bytes as the type has, and the type takes any.
    Ok(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// A record that ends behind its last hit.
fn hits_record(kind: u32, bytes: &[u8]) -> Result<RuleHits, DecodeError> {
    let mut whole = [0; size_of::<RuleHits>()];
    let there = whole.get_mut(..bytes.len()).ok_or(DecodeError::Length { kind, length: bytes.len() })?;
    there.copy_from_slice(bytes);
    let hits: RuleHits = record(kind, &whole)?;
    if bytes.len() < RULE_HITS_HEAD + size_of::<Hit>() * hits.count as usize
        && hits.count as usize <= MAX_HITS
    {
        return Err(DecodeError::Length { kind, length: bytes.len() });
    }
    Ok(hits)
}

/// Decodes one record.
///
/// # Errors
/// [`DecodeError`] for bytes that are no record.
pub fn decode(bytes: &[u8]) -> Result<Event, DecodeError> {
    let mut start = bytes;
    let number =
        start.try_get_u32_ne().map_err(|short| DecodeError::Length { kind: 0, length: short.available })?;
    let kind = Kind::from_u32(number).ok_or(DecodeError::Kind(number))?;
    const { assert!(std::mem::offset_of!(Head, kind) == 0) };
    match kind {
        Kind::Xdp
        | Kind::XdpVerdict
        | Kind::TcVerdict
        | Kind::DeviceIn
        | Kind::DeviceOut
        | Kind::Netfilter
        | Kind::Drop
        | Kind::Consume
        | Kind::Left => SightEvent::new(kind, record(number, bytes)?).map(Event::Sight),
        Kind::Conntrack => Ok(Event::Tuples(TuplesEvent::new(&record(number, bytes)?))),
        Kind::RuleHits => HitsEvent::new(&hits_record(number, bytes)?).map(Event::Hits),
        Kind::Route => RouteEvent::new(&record(number, bytes)?).map(Event::Route),
        Kind::Answer => AnswerEvent::new(&record(number, bytes)?).map(Event::Answer),
        Kind::Socket => Ok(Event::Socket(SocketTaken::new(&record(number, bytes)?))),
        Kind::RulePart => PartEvent::new(&record(number, bytes)?).map(Event::Part),
    }
}

#[cfg(test)]
mod tests;
