//! Names that the running kernel gives to numbers and addresses, looked up once and handed in.

use std::collections::HashMap;

/// Drop reasons, functions and programs.
#[derive(Default)]
pub struct Names {
    reasons: HashMap<u32, String>,
    functions: Option<Box<dyn Fn(u64) -> Option<String> + Send>>,
    programs: Option<Box<dyn Fn(u32) -> Option<String> + Send>>,
}

impl Names {
    /// `reasons`: `enum skb_drop_reason` of this kernel, with or without its prefix; `function`: the function that
    /// contains an address.
    #[must_use]
    pub fn new(
        reasons: impl IntoIterator<Item = (u32, String)>,
        function: impl Fn(u64) -> Option<String> + Send + 'static,
    ) -> Self {
        let short = |name: String| name.strip_prefix("SKB_DROP_REASON_").map(str::to_owned).unwrap_or(name);
        Self {
            reasons: reasons.into_iter().map(|(number, name)| (number, short(name))).collect(),
            functions: Some(Box::new(function)),
            programs: None,
        }
    }

    /// `program`: the name of a BPF program by its number.
    #[must_use]
    pub fn with_programs(self, program: impl Fn(u32) -> Option<String> + Send + 'static) -> Self {
        Self { programs: Some(Box::new(program)), ..self }
    }

    pub(super) fn program(&self, number: u32) -> Option<String> {
        self.programs.as_ref().and_then(|find| find(number))
    }

    /// The reason's name, or its number where this kernel has no name for it (a module's own reason).
    pub(super) fn reason(&self, number: u32) -> String {
        self.reasons.get(&number).cloned().unwrap_or_else(|| number.to_string())
    }

    pub(super) fn function(&self, address: u64) -> Option<String> {
        if address == 0 {
            return None;
        }
        self.functions.as_ref().and_then(|find| find(address))
    }
}
