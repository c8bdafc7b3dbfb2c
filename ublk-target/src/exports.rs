//! Volumes as the NBD server sees them.

use crate::{
    actor::GroupActor,
    client::Client,
    nbd::{Export, ExportCatalog, ExportError, ExportInfo, ExportReply, ExportRequest, Extent, ExtentKind},
    node::Node,
};
use holdfast::{
    command::VolumeSpec,
    pair::Role,
    request::{Access, Durability, ExtentKind as CoreExtent, Operation, Reply, RequestError, Space},
};
use std::rc::Rc;

/// The volumes that this node serves: a primary's, and a standby's or a fenced node's if an operator asked for it. As
/// `GROUP/VOLUME@NAME` also what they were in a generation, and as `GROUP/VOLUME@trial` a trial.
pub struct Exports(pub Rc<Node>);

/// What a trial's exports end with.
const TRIAL: &str = "trial";

impl Exports {
    fn all(&self) -> Vec<VolumeExport> {
        let groups = self.0.groups();
        let served = groups.iter().filter(|actor| is_served(actor));
        served.flat_map(|actor| volumes(actor, |_| Some((latest(actor), String::new())))).collect()
    }

    /// An export of something else than the latest state.
    fn find_aside(&self, name: &str) -> Option<VolumeExport> {
        let (path, view) = name.rsplit_once('@')?;
        let groups = self.0.groups();
        let actor = groups.iter().find(|actor| path.starts_with(&format!("{}/", actor.label().name)))?;
        let access = |_: &VolumeSpec| {
            let access = if view == TRIAL {
                actor.status().trial.map(|_| Access::Trial)?
            } else {
                // A generation is as private as the volume.
                let generation = view.parse().ok().filter(|_| is_served(actor))?;
                Access::Generation(actor.hold_generation(generation)?)
            };
            Some((access, format!("@{view}")))
        };
        let wanted = |spec: &VolumeSpec| path == format!("{}/{}", actor.label().name, spec.name);
        volumes(actor, |spec| wanted(spec).then(|| access(spec)).flatten()).pop()
    }
}

fn is_served(actor: &GroupActor) -> bool {
    actor.label().role == Role::Primary || actor.exported.get()
}

fn latest(actor: &GroupActor) -> Access {
    if actor.label().role == Role::Primary { Access::ReadWrite } else { Access::ReadOnly }
}

/// Exports of the volumes for which `access` gives one, and what their names end with.
fn volumes(actor: &Rc<GroupActor>, access: impl Fn(&VolumeSpec) -> Option<(Access, String)>) -> Vec<VolumeExport> {
    let volumes = actor.label().volumes.into_iter();
    let export = |spec: VolumeSpec| {
        let (access, suffix) = access(&spec)?;
        Some(VolumeExport::new(actor.clone(), spec, access, suffix))
    };
    volumes.filter_map(export).collect()
}

impl ExportCatalog for Exports {
    type Export = VolumeExport;

    fn list(&self) -> Vec<ExportInfo> {
        self.all().iter().map(Export::info).collect()
    }

    fn find(&self, name: &str) -> Option<Rc<VolumeExport>> {
        let mut all = self.all();
        if name.is_empty() && all.len() == 1 {
            return all.pop().map(Rc::new);
        }
        let found = all.into_iter().find(|export| export.info().name == name);
        found.or_else(|| self.find_aside(name)).map(Rc::new)
    }
}

/// A volume as NBD sees it.
pub struct VolumeExport {
    actor: Rc<GroupActor>,
    spec: VolumeSpec,
    client: Client,
    access: Access,
    suffix: String,
}

impl VolumeExport {
    fn new(actor: Rc<GroupActor>, spec: VolumeSpec, access: Access, suffix: String) -> Self {
        let client = Client::new(actor.clone(), spec.id, access);
        Self { actor, spec, client, access, suffix }
    }
}

impl Drop for VolumeExport {
    fn drop(&mut self) {
        if let Access::Generation(order) = self.access {
            self.actor.release_generation(order);
        }
    }
}

impl Export for VolumeExport {
    fn info(&self) -> ExportInfo {
        let label = self.actor.label();
        let description = match self.access {
            Access::Generation(_) => "Holdfast volume as it was in a generation".into(),
            Access::Trial => "A trial of a Holdfast volume; what is written to it is thrown away".into(),
            Access::ReadWrite | Access::ReadOnly => format!("Holdfast volume, {} here", label.role),
        };
        ExportInfo {
            name: format!("{}/{}{}", label.name, self.spec.name, self.suffix),
            description,
            size: self.spec.size,
            logical_block_size: self.spec.logical_block_size,
            preferred_block_size: 4096,
            read_only: match self.access {
                Access::Generation(_) => true,
                Access::Trial => false,
                Access::ReadWrite | Access::ReadOnly => label.role != Role::Primary,
            },
        }
    }

    fn submit(&self, request: ExportRequest) -> impl Future<Output = Result<ExportReply, ExportError>> + 'static {
        let answer = self.client.request(operation(request));
        async move {
            match answer.await {
                Ok(Reply::Done) => Ok(ExportReply::Done),
                Ok(Reply::Data(pieces)) => Ok(ExportReply::Data(pieces)),
                Ok(Reply::Extents(extents)) => Ok(ExportReply::Extents(
                    extents
                        .into_iter()
                        .map(|extent| Extent {
                            size: extent.size,
                            kind: match extent.kind {
                                CoreExtent::Allocated => ExtentKind::Allocated,
                                CoreExtent::Hole => ExtentKind::Hole,
                            },
                        })
                        .collect(),
                )),
                Err(RequestError::Invalid) => Err(ExportError::Invalid),
                Err(RequestError::Io) => Err(ExportError::Io),
                Err(RequestError::NoSpace) => Err(ExportError::NoSpace),
                Err(RequestError::NotPrimary | RequestError::ReadOnly) => Err(ExportError::ReadOnly),
                // Not by closing the connection: a client that comes again by itself would not tell the host.
                Err(RequestError::Outdated | RequestError::NotKept | RequestError::Stopped) => {
                    Err(ExportError::Shutdown)
                }
            }
        }
    }
}

fn operation(request: ExportRequest) -> Operation {
    let durability = |fua| {
        if fua { Durability::Durable } else { Durability::Completed }
    };
    match request {
        ExportRequest::Read { offset, size } => Operation::Read { offset, size },
        ExportRequest::Write { offset, data, fua } => Operation::Write { offset, data, durability: durability(fua) },
        ExportRequest::Flush => Operation::Flush,
        ExportRequest::Discard { offset, size } => Operation::Discard { offset, size },
        ExportRequest::WriteZeroes { offset, size, keep_allocated, fua } => Operation::WriteZeroes {
            offset,
            size,
            space: if keep_allocated { Space::Keep } else { Space::Release },
            durability: durability(fua),
        },
        ExportRequest::Extents { offset, size } => Operation::Extents { offset, size },
    }
}
