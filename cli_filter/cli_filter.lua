-- SPDX-License-Identifier: Apache-2.0
--
-- cli_filter.lua for a site without one: goes beside slurm.conf on login nodes, with CliFilterPlugins=lua.
-- A site with its own script adds the lines with package.path and require to it, and the call in
-- slurm_cli_pre_submit().

package.path = "/usr/local/lib/qrmi-slurm/lua/?.lua;" .. package.path
local is_loaded, qrmi = pcall(require, "qrmi_slurm")

function slurm_cli_setup_defaults()
    return slurm.SUCCESS
end

function slurm_cli_pre_submit(options)
    return is_loaded and qrmi.cli_pre_submit(options) or slurm.SUCCESS
end

function slurm_cli_post_submit()
    return slurm.SUCCESS
end

return slurm.SUCCESS
