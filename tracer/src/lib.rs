//! pathtrace: the stages of the pipeline, each a module that imports only earlier ones.
//! Read ARCHITECTURE.md first.

pub mod diagnose;
pub mod doctor;
pub mod enrich;
pub mod model;
pub mod rules;
