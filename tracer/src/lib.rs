//! pathtrace: the stages of the pipeline, each a module that imports only earlier ones.
//! Read ARCHITECTURE.md first.

pub mod cli;
pub mod config;
pub mod error;
pub mod model;
pub mod netns;
pub mod render;
pub mod rules;
pub mod run;
pub mod summary;
