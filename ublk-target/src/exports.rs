//! Volumes as the NBD server sees them.

use crate::{
    actor::GroupActor,
    nbd::{Export, ExportCatalog, ExportError, ExportInfo, ExportReply, ExportRequest, Extent, ExtentKind},
    node::Node,
};
use holdfast::{
    command::VolumeSpec,
    pair::Role,
    request::{Access, Durability, ExtentKind as CoreExtent, Operation, Reply, RequestError, Space},
};
use std::rc::Rc;

/// The volumes that this node serves: a primary's, and a standby's or a fenced node's if an operator asked for it.
pub struct Exports(pub Rc<Node>);

impl Exports {
    fn all(&self) -> Vec<VolumeExport> {
        let groups = self.0.groups();
        let served = groups.iter().filter(|group| match group.label().role {
            Role::Primary => true,
            Role::Secondary | Role::Fenced => group.exported.get(),
        });
        served
            .flat_map(|actor| actor.label().volumes.into_iter().map(|spec| VolumeExport::new(actor.clone(), spec)))
            .collect()
    }
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
        all.into_iter().find(|export| export.info().name == name).map(Rc::new)
    }
}

/// A volume as NBD sees it.
pub struct VolumeExport {
    actor: Rc<GroupActor>,
    spec: VolumeSpec,
    access: Access,
}

impl VolumeExport {
    fn new(actor: Rc<GroupActor>, spec: VolumeSpec) -> Self {
        actor.add_client(spec.id);
        let access = if actor.label().role == Role::Primary { Access::ReadWrite } else { Access::ReadOnly };
        Self { actor, spec, access }
    }
}

impl Drop for VolumeExport {
    fn drop(&mut self) {
        self.actor.remove_client(self.spec.id);
    }
}

impl Export for VolumeExport {
    fn info(&self) -> ExportInfo {
        let label = self.actor.label();
        ExportInfo {
            name: format!("{}/{}", label.name, self.spec.name),
            description: format!("Holdfast volume, {} here", label.role),
            size: self.spec.size,
            logical_block_size: self.spec.logical_block_size,
            preferred_block_size: 4096,
            read_only: label.role != Role::Primary,
        }
    }

    fn submit(&self, request: ExportRequest) -> impl Future<Output = Result<ExportReply, ExportError>> + 'static {
        let answer = self.actor.request(self.spec.id, self.access, operation(request));
        async move {
            match answer.await {
                Ok(Ok(Reply::Done)) => Ok(ExportReply::Done),
                Ok(Ok(Reply::Data(pieces))) => Ok(ExportReply::Data(pieces)),
                Ok(Ok(Reply::Extents(extents))) => Ok(ExportReply::Extents(
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
                Ok(Err(RequestError::Invalid)) => Err(ExportError::Invalid),
                Ok(Err(RequestError::Io)) => Err(ExportError::Io),
                Ok(Err(RequestError::NoSpace)) => Err(ExportError::NoSpace),
                Ok(Err(RequestError::NotPrimary)) => Err(ExportError::ReadOnly),
                Ok(Err(RequestError::Stopped)) | Err(_) => Err(ExportError::Shutdown),
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
