//! What the tracepoints of the running kernel hand over (`btf_trace_NAME`, include/linux/tracepoint.h).

use tracer_common::settings::FreedArguments;

use super::{KernelTypes, btf::Parameter};

/// The type that describes a tracepoint.
#[must_use]
pub fn described_as(name: &str) -> String {
    format!("btf_trace_{name}")
}

/// What a tracepoint hands over; `None` where this kernel does not describe it.
#[must_use]
pub fn arguments(types: &KernelTypes, name: &str) -> Option<Vec<Parameter>> {
    let mut parameters = types.parameters(&described_as(name), &[])?;
    // The first is what the probe was registered with.
    (!parameters.is_empty()).then(|| parameters.split_off(1))
}

/// Whether a tracepoint hands over pointers to these structures in these places; an empty name stands for anything.
/// Where this kernel does not describe its tracepoints, the documented order is taken.
#[must_use]
pub fn takes(types: &KernelTypes, name: &str, structures: &[&str]) -> bool {
    let Some(parameters) = arguments(types, name) else { return true };
    parameters.len() >= structures.len()
        && structures.iter().zip(&parameters).all(|(expected, found)| {
            expected.is_empty() || matches!(found, Parameter::To(structure) if structure == expected)
        })
}

/// What the tracepoints of freed packets have on this kernel.
#[must_use]
pub fn freed(types: &KernelTypes) -> FreedArguments {
    let drop = arguments(types, "kfree_skb").unwrap_or_default();
    let consume = arguments(types, "consume_skb").unwrap_or_default();
    let reason = Parameter::Enum("skb_drop_reason".to_owned());
    FreedArguments {
        drop_location: u8::from(drop.get(1) == Some(&Parameter::Void)),
        drop_reason: u8::from(drop.get(2) == Some(&reason)),
        consume_location: u8::from(consume.get(1) == Some(&Parameter::Void)),
        reserved: 0,
    }
}
