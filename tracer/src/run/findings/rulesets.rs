//! Rulesets as diagnosis sees them, made anew when they change.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    attach::Kernel,
    diagnose::RulesetView,
    kernel::in_netns,
    rules::{
        late::{LateTexts, Printed},
        text::{Processes, Runner, Tool},
    },
    run::scope::Scoped,
};

/// How old a listing may be.
const KEEP: Duration = Duration::from_secs(1);
/// A tool that takes longer is killed.
const TOOL_DEADLINE: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(super) struct Rulesets {
    /// With the texts they were made of.
    made: HashMap<u32, (Arc<LateTexts>, Arc<RulesetView>)>,
    /// Whole listings by `nft`, and when they were made.
    listings: HashMap<u32, (Instant, Option<Arc<RulesetView>>)>,
}

impl Rulesets {
    /// A namespace has gone.
    pub(super) fn forget(&mut self, netns: u32) {
        self.made.remove(&netns);
        self.listings.remove(&netns);
    }

    /// The nft tables of a namespace with those that judge at devices. Those have no place at the hooks of IP, so their
    /// changes are not followed: they are listed when a packet was refused there.
    pub(super) fn listing(&mut self, scoped: &Scoped, netns: u32) -> Option<Arc<RulesetView>> {
        if let Some((made, view)) = self.listings.get(&netns)
            && made.elapsed() < KEEP
        {
            return view.clone();
        }
        let runner = Processes { deadline: TOOL_DEADLINE };
        let text = in_netns(&scoped.get(netns)?.path, || runner.run(Tool::Nft)).ok()?.ok();
        let view = text.map(|text| {
            let mut view = RulesetView::new(netns);
            view.add_nft_list(&text);
            Arc::new(view)
        });
        self.listings.insert(netns, (Instant::now(), view.clone()));
        view
    }

    /// `None` while its texts are not proven.
    pub(super) fn ruleset(&mut self, kernel: &Kernel, netns: u32) -> Option<Arc<RulesetView>> {
        let namespace = kernel.namespaces().find(|namespace| namespace.inode() == netns)?;
        let texts = namespace.texts();
        if let Some((made_of, view)) = self.made.get(&netns)
            && Arc::ptr_eq(made_of, texts)
        {
            return Some(view.clone());
        }
        let view = view(netns, texts.printed()?);
        let view = Arc::new(view);
        self.made.insert(netns, (texts.clone(), view.clone()));
        Some(view)
    }
}

/// The rulesets as diagnosis sees them.
pub(in crate::run) fn view(netns: u32, printed: &Printed) -> RulesetView {
    let mut view = RulesetView::new(netns);
    for (tool, text) in &printed.raw {
        if let Some((backend, family)) = tool.iptables() {
            view.add_iptables_save(backend, family, text);
        }
    }
    // Tables that iptables-nft printed are known by now, and left out of nft's.
    for (_, text) in printed.raw.iter().filter(|(tool, _)| *tool == Tool::Nft) {
        view.add_nft_list(text);
    }
    view.unread = printed.texts.missing().iter().map(ToString::to_string).collect();
    view
}
