//! pathtrace: the stages of the pipeline, each a module that imports only earlier ones.
//! Read ARCHITECTURE.md first.

pub mod attach;
pub mod correlate;
pub mod decode;
pub mod kernel;
pub mod model;
pub mod plan;
pub mod rules;
