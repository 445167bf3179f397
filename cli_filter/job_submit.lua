-- SPDX-License-Identifier: Apache-2.0
--
-- job_submit.lua for a site without one: goes beside slurm.conf on the controller, with JobSubmitPlugins=lua.
-- A site with its own script adds the lines with package.path and require to it, and the two calls.

package.path = "/usr/local/lib/qrmi-slurm/lua/?.lua;" .. package.path
local is_loaded, qrmi = pcall(require, "qrmi_slurm")

-- Without the module slurmctld still starts, but refuses jobs with --qpu, which would run without their licenses.
if not is_loaded then
    slurm.log_error("%s", "qrmi-slurm: jobs with --qpu are refused: " .. tostring(qrmi))
    qrmi = {
        job_submit = function(job_desc)
            for _, entry in pairs(job_desc.spank_job_env or {}) do
                if entry:match("^QRMI_QPU=.") or entry:match("^SPANK_QRMI_QPU=.") then
                    slurm.log_user("qrmi-slurm: jobs with --qpu are not accepted at the moment; please tell an admin")
                    return slurm.ERROR
                end
            end
            return slurm.SUCCESS
        end,
        job_modify = function()
            return slurm.SUCCESS
        end,
    }
end

function slurm_job_submit(job_desc, part_list, submit_uid)
    return qrmi.job_submit(job_desc, part_list, submit_uid)
end

function slurm_job_modify(job_desc, job_rec, part_list, modify_uid)
    return qrmi.job_modify(job_desc, job_rec, part_list, modify_uid)
end

return slurm.SUCCESS
