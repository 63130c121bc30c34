//! What the functions of the running kernel take.

use btf_rs::{Btf, FuncProto, Type};

use super::{KernelTypes, MAX_DEPTH, behind_names};

/// What a parameter is, as far as it can be told apart by type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// A pointer to a structure or union of this name.
    To(String),
    /// `void *`
    Void,
    /// An enum of this name.
    Enum(String),
    /// Another number, or a pointer to one.
    Other,
}

impl KernelTypes {
    /// The parameters of a function, or of a function type (a typedef, `nf_hookfn` say, or `btf_trace_kfree_skb`,
    /// which is a pointer to one). `None` where this kernel describes nothing of that name.
    #[must_use]
    pub fn parameters(&self, name: &str) -> Option<Vec<Parameter>> {
        self.search(name, |btf, found| match found {
            Type::Func(_) | Type::Typedef(_) => {
                let prototype = prototype(btf, found.clone())?;
                prototype
                    .parameters
                    .iter()
                    .map(|parameter| Some(pointee(btf, btf.resolve_chained_type(parameter).ok()?)))
                    .collect()
            }
            _ => None,
        })
    }

    /// The position of the only parameter that points to `structure`.
    #[must_use]
    pub fn position_of(&self, function: &str, structure: &str) -> Option<usize> {
        let parameters = self.parameters(function)?;
        let mut found = parameters
            .iter()
            .enumerate()
            .filter(|(_, parameter)| matches!(parameter, Parameter::To(name) if name == structure));
        let (position, _) = found.next()?;
        found.next().is_none().then_some(position)
    }
}

fn prototype(btf: &Btf, mut kind: Type) -> Option<FuncProto> {
    for _ in 0..MAX_DEPTH {
        match kind {
            Type::FuncProto(prototype) => return Some(prototype),
            Type::Func(_) | Type::Typedef(_) | Type::Ptr(_) => {
                kind = btf.resolve_chained_type(kind.as_btf_type()?).ok()?;
            }
            _ => return None,
        }
    }
    None
}

fn pointee(btf: &Btf, kind: Type) -> Parameter {
    let pointer = match behind_names(btf, kind) {
        Some(Type::Ptr(pointer)) => pointer,
        Some(Type::Enum(e)) => return btf.resolve_name(&e).map_or(Parameter::Other, Parameter::Enum),
        _ => return Parameter::Other,
    };
    match btf.resolve_chained_type(&pointer).ok() {
        // What nothing describes is void.
        None | Some(Type::Void) => Parameter::Void,
        Some(to) => match behind_names(btf, to) {
            Some(Type::Struct(s) | Type::Union(s)) => {
                btf.resolve_name(&s).map_or(Parameter::Other, Parameter::To)
            }
            // A structure that only modules define.
            Some(Type::Fwd(forward)) => btf.resolve_name(&forward).map_or(Parameter::Other, Parameter::To),
            Some(Type::Void) => Parameter::Void,
            _ => Parameter::Other,
        },
    }
}
