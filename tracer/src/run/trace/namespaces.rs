//! Namespaces that come and go while a trace runs.

use std::io::{self, Write as _};

use super::Trace;
use crate::{config::Format, error::Failure, model::NoticeLevel};

impl Trace<'_> {
    pub(super) fn look_at_scope(&mut self) -> Result<(), Failure> {
        let change = self.scoped.look();
        for namespace in change.vanished {
            self.kernel.remove_namespace(namespace.inode)?;
            self.kernel_trace.remove(namespace.inode);
            self.findings.gone(namespace.inode);
            self.notice(NoticeLevel::Warning, format!("namespace {} has gone", namespace.name))?;
        }
        for namespace in change.appeared {
            let said = self.kernel_trace.add(&namespace);
            self.tell(said)?;
            let added =
                self.kernel.add_namespace(namespace.inode, namespace.path.clone(), &mut self.correlator.view);
            if added.is_ok() {
                self.render.name_netns(namespace.inode, &namespace.name);
                self.notice(
                    NoticeLevel::Info,
                    format!("namespace {} is traced from now on", namespace.name),
                )?;
                self.scoped.add(namespace);
            }
        }
        let said = self.kernel_trace.look(self.scoped.namespaces());
        self.tell(said)?;
        if self.scoped.is_empty() {
            self.notice(NoticeLevel::Warning, "no namespace is left to trace".to_owned())?;
            self.done = true;
        }
        Ok(())
    }

    /// What concerns the user's ruleset is said to a person, also where a program reads the results.
    pub(super) fn tell(&mut self, said: Vec<String>) -> Result<(), Failure> {
        for message in said {
            if self.config.output.format == Format::Json {
                writeln!(io::stderr(), "pathtrace: {message}").map_err(Failure::Output)?;
            }
            self.notice(NoticeLevel::Warning, message)?;
        }
        Ok(())
    }
}
