//! What the functions of the running kernel take.

use std::sync::PoisonError;

use btf_rs::{Btf, FuncProto, Type};

use super::{KernelTypes, MAX_DEPTH, behind_names, find_member};

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
    /// which is a pointer to one): of the kernel proper, else of the first of `modules` that is loaded and has it.
    /// `None` where nothing of that name is described. Other modules are not looked at: there may be a hundred.
    #[must_use]
    pub fn parameters(&self, name: &str, modules: &[&str]) -> Option<Vec<Parameter>> {
        described(&self.vmlinux, self.vmlinux_ids(name)).or_else(|| {
            let directory = &self.modules.lock().unwrap_or_else(PoisonError::into_inner).directory;
            modules.iter().find_map(|module| {
                let module = Btf::from_split_file(directory.join(module), &self.vmlinux).ok()?;
                described(&module, module.split()?.resolve_ids_by_name(name).ok()?)
            })
        })
    }
}

impl KernelTypes {
    /// The parameters of the functions that a member of a structure points at.
    #[must_use]
    pub fn parameters_behind(&self, structure: &str, member: &str) -> Option<Vec<Parameter>> {
        self.search(structure, |btf, found| {
            let Type::Struct(owner) = found else { return None };
            let member = find_member(btf, owner, member, MAX_DEPTH)?;
            parameters_of(btf, &prototype(btf, member.kind)?)
        })
    }
}

fn parameters_of(btf: &Btf, prototype: &FuncProto) -> Option<Vec<Parameter>> {
    let one = |parameter| Some(pointee(btf, btf.resolve_chained_type(parameter).ok()?));
    prototype.parameters.iter().map(one).collect()
}

/// The parameters of the first of these that has any.
fn described(btf: &Btf, ids: Vec<u32>) -> Option<Vec<Parameter>> {
    ids.into_iter().find_map(|id| parameters_of(btf, &prototype(btf, btf.resolve_type_by_id(id).ok()?)?))
}

/// The position of the only parameter that is `wanted`.
#[must_use]
pub fn position_of(parameters: &[Parameter], wanted: &Parameter) -> Option<usize> {
    let mut found = parameters.iter().enumerate().filter(|(_, parameter)| *parameter == wanted);
    let (position, _) = found.next()?;
    found.next().is_none().then_some(position)
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
