{{/* What every object's name begins with. */}}
{{- define "tuneport.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 45 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 45 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels that never change: (list $ "component"). */}}
{{- define "tuneport.selector" -}}
app.kubernetes.io/name: {{ (first .).Chart.Name }}
app.kubernetes.io/instance: {{ (first .).Release.Name }}
app.kubernetes.io/component: {{ last . }}
{{- end -}}

{{/* Labels of an object: (list $ "component"). */}}
{{- define "tuneport.labels" -}}
{{ include "tuneport.selector" . }}
app.kubernetes.io/version: {{ (first .).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (first .).Release.Service }}
helm.sh/chart: {{ (first .).Chart.Name }}-{{ (first .).Chart.Version }}
{{- end -}}

{{- define "tuneport.launcherAccount" -}}
{{- .Values.launcher.serviceAccount.name | default (printf "%s-launcher" (include "tuneport.name" .)) -}}
{{- end -}}

{{/* What the launcher asks of the Kubernetes API, and no more. */}}
{{- define "tuneport.launcherRules" -}}
- apiGroups: [kubeflow.org]
  resources: [pytorchjobs]
  verbs: [create, delete, list, patch, watch]
- apiGroups: [trainer.kubeflow.org]
  resources: [trainjobs]
  verbs: [create, delete, list, patch, watch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
- apiGroups: [""]
  resources: [events]
  verbs: [list]
# Why a job does not start: what operators, schedulers and queues make of it. What a cluster lacks does no harm.
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get]
- apiGroups: [jobset.x-k8s.io]
  resources: [jobsets]
  verbs: [get]
- apiGroups: [scheduling.volcano.sh]
  resources: [podgroups]
  verbs: [get]
- apiGroups: [scheduling.x-k8s.io]
  resources: [podgroups]
  verbs: [get]
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list]
{{- end -}}

{{- define "tuneport.trackingUri" -}}
http://{{ include "tuneport.name" . }}-mlflow.{{ .Release.Namespace }}.svc:5000
{{- end -}}

{{/* Whether MLflow keeps something on a volume of its own: "true" or nothing. */}}
{{- define "tuneport.mlflowVolume" -}}
{{- if not (and .Values.mlflow.database.existingSecret .Values.mlflow.artifacts.destination) }}true{{ end -}}
{{- end -}}

{{/* The label of pods that the network policies hold for: what a configuration puts on its stages. */}}
{{- define "tuneport.networkLabel" -}}
tuneport.dev/network: {{ include "tuneport.name" . }}
{{- end -}}

{{/* A pod's and a container's part of the pod security standard "restricted"; 1000 is the user of tuneport's images. */}}
{{- define "tuneport.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
seccompProfile: {type: RuntimeDefault}
{{- end -}}
{{- define "tuneport.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "tuneport.pullSecrets" -}}
{{- with .Values.imagePullSecrets -}}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end -}}
{{- end -}}
