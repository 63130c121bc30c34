//! pathtrace: the stages of the pipeline, each a module that imports only earlier ones.
//! Read ARCHITECTURE.md first.

pub mod attach;
pub mod attribute;
pub mod cli;
pub mod config;
pub mod correlate;
pub mod decode;
pub mod diagnose;
pub mod doctor;
pub mod enrich;
pub mod error;
pub mod kernel;
pub mod model;
pub mod netns;
pub mod plan;
pub mod render;
pub mod rules;
pub mod run;
pub mod summary;
