-- SPDX-License-Identifier: Apache-2.0
--
-- job_submit.lua for a site that has none: beside slurm.conf on the controller, with JobSubmitPlugins=lua.
-- A site that has one adds the two lines on package.path and require to it, and the two calls.

package.path = "/opt/qrmi-slurm/lib/lua/?.lua;" .. package.path
local is_there, qrmi = pcall(require, "qrmi_slurm")

-- Without the module slurmctld starts all the same, and takes no job with --qpu: it would have no license.
if not is_there then
    slurm.log_error("%s", "qrmi-slurm: jobs with --qpu are refused: " .. tostring(qrmi))
    qrmi = {
        job_submit = function(job_desc)
            for _, entry in pairs(job_desc.spank_job_env or {}) do
                if entry:match("^QRMI_QPU=.") or entry:match("^SPANK_QRMI_QPU=.") then
                    slurm.log_user("qrmi-slurm: jobs with --qpu cannot be taken now; please tell this site's admins")
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
