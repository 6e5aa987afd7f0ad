//! The flags that say what is kept of attributes, and of entries that are neither files nor
//! directories.

use clap::{ArgAction, Args};
use holesync::error::{Error, Result};
use holesync::options::{AttributeRules, FollowLinks, IdMap, KindRules, ModeChanges};

/// What else is kept.
#[derive(Debug, Args)]
pub struct AttributeArgs {
    /// Make device nodes and special files (--devices --specials)
    #[arg(short = 'D', id = "nodes")]
    nodes: bool,
    #[arg(long = "no-D", hide = true)]
    no_nodes: bool,
    /// Make device nodes (root only)
    #[arg(long)]
    devices: bool,
    #[arg(long, hide = true)]
    no_devices: bool,
    /// Make fifos and sockets
    #[arg(long)]
    specials: bool,
    #[arg(long, hide = true)]
    no_specials: bool,
    /// Names of one file become names of one file
    #[arg(short = 'H', long)]
    hard_links: bool,
    /// Keep ACLs
    #[arg(short = 'A', long)]
    acls: bool,
    /// Keep extended attributes
    #[arg(short = 'X', long)]
    xattrs: bool,
    /// Keep access times
    #[arg(short = 'U', long, action = ArgAction::Count)]
    atimes: u8,
    /// Leave the times of directories alone
    #[arg(short = 'O', long)]
    omit_dir_times: bool,
    /// Leave the times of symlinks alone
    #[arg(short = 'J', long)]
    omit_link_times: bool,
    /// Without permissions, keep what makes files executable
    #[arg(short = 'E', long)]
    executability: bool,
    /// Change permissions on the way, as in Du=rwx,Fgo-w or D755,F644
    #[arg(long, value_name = "CHANGES", allow_hyphen_values = true)]
    chmod: Vec<String>,
    /// Owners and groups go by number, whatever their names
    #[arg(long)]
    numeric_ids: bool,
    /// Everything belongs to USER, to GROUP, or both
    #[arg(long, value_name = "USER:GROUP", conflicts_with_all = ["usermap", "groupmap"])]
    chown: Option<String>,
    /// What FROM owns belongs to TO: names, numbers; FROM may have wildcards
    #[arg(long, value_name = "FROM:TO,...")]
    usermap: Option<String>,
    /// The same for groups
    #[arg(long, value_name = "FROM:TO,...")]
    groupmap: Option<String>,
    /// Try what only root may do
    #[arg(long = "super")]
    superuser: bool,
    /// Do nothing that only root may do
    #[arg(long = "no-super")]
    no_superuser: bool,
    /// Send what symlinks lead to in their place
    #[arg(short = 'L', long)]
    copy_links: bool,
    /// Send what symlinks lead to that lead out of SRC
    #[arg(long)]
    copy_unsafe_links: bool,
    /// Send directories that symlinks lead to in their place
    #[arg(short = 'k', long)]
    copy_dirlinks: bool,
    /// Take a symlink to a directory in DEST for a directory
    #[arg(short = 'K', long)]
    keep_dirlinks: bool,
}

impl AttributeArgs {
    /// What becomes of entries of other kinds. `archive`: -a was given; `keeps_links`: a symlink
    /// is one also where it is named itself.
    pub fn kinds(&self, archive: bool, keeps_links: bool) -> KindRules {
        let all = (archive || self.nodes) && !self.no_nodes;
        KindRules {
            devices: self.devices || all && !self.no_devices,
            specials: self.specials || all && !self.no_specials,
            hard_links: self.hard_links,
            follow: FollowLinks {
                all: self.copy_links,
                leaving: self.copy_unsafe_links,
                to_directories: self.copy_dirlinks,
                keeps_named: keeps_links,
            },
            keep_dir_links: self.keep_dirlinks,
        }
    }

    /// Whether more is to be kept of a file, or made of it, than its time.
    pub fn keeps_more_than_times(&self) -> bool {
        let (maps_users, maps_groups) = self.maps();
        let changes_owner = maps_users || maps_groups || self.numeric_ids;
        let has_mode = self.executability || !self.chmod.is_empty();
        let has_extended = self.acls || self.xattrs || self.atimes > 0;
        changes_owner || has_mode || has_extended || self.superuser || self.no_superuser
    }

    /// Whether owners are mapped, and groups: then they are kept, too.
    pub fn maps(&self) -> (bool, bool) {
        let (user, group) = self.owners();
        (self.usermap.is_some() || user.is_some(), self.groupmap.is_some() || group.is_some())
    }

    /// What is kept of attributes. Changes of permissions that name nobody leave the bits of
    /// `umask` alone. `omits_dir_times`: nobody may count on the times of directories.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for what is no change and no map.
    pub fn rules(&self, umask: u32, omits_dir_times: bool) -> Result<AttributeRules> {
        let changes = self.chmod.iter().try_fold(ModeChanges::default(), |all, text| {
            Ok::<_, Error>(all.and(ModeChanges::parse(text, umask)?))
        });
        let map = |text: &Option<String>, everyone: Option<&str>, option: &str| match (text, everyone) {
            (Some(text), _) => IdMap::parse(text, option),
            (None, Some(name)) => Ok(IdMap::everyone_to(name)),
            (None, None) => Ok(IdMap::default()),
        };
        let (user, group) = self.owners();
        Ok(AttributeRules {
            executability: self.executability,
            atimes: self.atimes > 0,
            omit_dir_times: self.omit_dir_times || omits_dir_times,
            omit_link_times: self.omit_link_times,
            acls: self.acls,
            xattrs: self.xattrs,
            numeric_ids: self.numeric_ids,
            chmod: changes?,
            user_map: map(&self.usermap, user, "--usermap")?,
            group_map: map(&self.groupmap, group, "--groupmap")?,
            superuser: match (self.superuser, self.no_superuser) {
                (true, _) => Some(true),
                (false, true) => Some(false),
                (false, false) => None,
            },
        })
    }

    /// The user and group of `--chown`, as far as they are named.
    fn owners(&self) -> (Option<&str>, Option<&str>) {
        let Some(owners) = &self.chown else { return (None, None) };
        let (user, group) = owners.split_once(':').unwrap_or((owners, ""));
        (Some(user).filter(|user| !user.is_empty()), Some(group).filter(|group| !group.is_empty()))
    }
}
