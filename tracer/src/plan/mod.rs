//! What is attached where: the catalogue of tracepoints, and the places of netfilter probes between the
//! functions that are hooked in a namespace. Pure.

mod catalogue;
mod devices;
mod kprobes;
mod places;
mod view;

pub use catalogue::{TRACEPOINTS, Tracepoint};
pub use devices::{DeviceProbes, device_probes};
pub use kprobes::{places, plan_functions};
pub use places::{GapPlan, HookPlan, plan_hook, unbounded};
pub use view::{Gap, Judge, ProbeKey, View};
