-- SPDX-License-Identifier: Apache-2.0
--
-- cli_filter.lua for a site that has none: beside slurm.conf on login nodes, with CliFilterPlugins=lua.
-- A site that has one adds the two lines on package.path and require to it, and the call in slurm_cli_pre_submit().

package.path = "/opt/qrmi-slurm/lib/lua/?.lua;" .. package.path
local is_there, qrmi = pcall(require, "qrmi_slurm")

function slurm_cli_setup_defaults()
    return slurm.SUCCESS
end

function slurm_cli_pre_submit(options)
    return is_there and qrmi.cli_pre_submit(options) or slurm.SUCCESS
end

function slurm_cli_post_submit()
    return slurm.SUCCESS
end

return slurm.SUCCESS
